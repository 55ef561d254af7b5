"""Imports run one way: no module imports from a floor above its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import encoder_bench

ROOT = Path(encoder_bench.__file__).parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("atomic", "downloads", "errors", "hardware", "hashing", "hub", "paths", "processes",
     "progress", "record_parts", "recipes", "statistics"),
    ("data", "encoders", "metrics"),
    ("inspection", "mllm"),
    ("training",),
    ("tasks",),
    ("results",),
    ("answering", "assembly", "estimate", "finished", "plan", "replay",
     "replay_training", "report_features", "run", "run_data", "trained"),
    ("bench", "pretrain", "sweep"),
    ("cli",),
)  # fmt: skip
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PUBLIC = ("__init__", "__main__")
"""The package's own names and its entry may reach anywhere."""


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, *rest = node.module.split(".")
            if package == "encoder_bench":
                yield from rest[:1] or (name.name for name in node.names)
        elif isinstance(node, ast.Import):
            for name in node.names:
                package, *rest = name.name.split(".")
                if package == "encoder_bench":
                    yield from rest[:1]


def upward(source: str, room: str) -> list[str]:
    return [
        other for other in imported_rooms(source) if other in FLOOR and FLOOR[other] > FLOOR[room]
    ]


def test_every_room_stands_on_a_floor() -> None:
    rooms = {room_of(path) for path in ROOT.rglob("*.py")}
    assert rooms - set(PUBLIC) == set(FLOOR)


def test_no_module_imports_from_above() -> None:
    found = {
        str(path.relative_to(ROOT)): above
        for path in sorted(ROOT.rglob("*.py"))
        if room_of(path) not in PUBLIC and (above := upward(path.read_text(), room_of(path)))
    }
    assert found == {}


def test_an_upward_import_is_seen() -> None:
    assert upward("def f():\n    from encoder_bench.results.record import run_id", "mllm")
    assert upward("import encoder_bench.cli.app", "data") == ["cli"]
    assert upward("from encoder_bench import run", "tasks") == ["run"]
    assert not upward("from encoder_bench.encoders.registry import find_spec", "mllm")
