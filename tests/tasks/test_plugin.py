"""A task of another package: its reader, runner and recipe come by entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import load_task
from encoder_bench.data.folder import DataFolder
from encoder_bench.tasks.evaluate import evaluate
from encoder_bench.tasks.registry import find_runner, runner_names

MODULE = """
from pathlib import Path
from encoder_bench.data.readers import Reader
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import Metric, per_answer
from encoder_bench.tasks.measures import Measured, measure_all

RECIPE = Path(__file__).with_name("shouting.toml")


def read(layout, task, source, split):
    image = layout.root / "x.png"
    asked = [(n, f"{source} {n}?") for n in (1, 2)]
    return [Sample(f"{task}/{n}", task, n, image, text, ("YES",), "YES") for n, text in asked]


READER = Reader("loud-reader", read, {"whole": ("loud/questions.json",)})
LOUD = Metric("loud", per_answer(lambda text, truths: 100.0 * text.isupper()), "shouting")


class Runner:
    METRICS = ("loud",)

    @staticmethod
    def measure(samples, predictions, metrics):
        return Measured(measure_all(samples, predictions, metrics), list(predictions))
"""
ENTRIES = """
[encoder_bench.readers]
loud-reader = shouting_package:READER

[encoder_bench.metrics]
loud = shouting_package:LOUD

[encoder_bench.tasks]
shouting = shouting_package:Runner

[encoder_bench.task_recipes]
shouting = shouting_package:RECIPE
"""
TASK = """
description = "is it said loudly"
runner = "shouting"
reader = "loud-reader"
source = "whole"
prompt = "{question}"
metrics = ["loud"]
primary = "loud"
column = "Loud"
controls = []
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "shouting_package.py").write_text(MODULE)
    (tmp_path / "shouting.toml").write_text(TASK)
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("shouting_package", None)


class Model:
    def answer(self, images: object, prompts: list[list[str]], decoding: object) -> list[list[str]]:
        return [["YES" if "1" in text else "no" for text in group] for group in prompts]

    choose = answer


def test_a_task_of_another_package_is_read_asked_and_scored(package: Path) -> None:
    recipe = load_task("shouting")
    assert "shouting" in runner_names()
    samples = DataFolder("x", package).samples(
        "shouting", reader=recipe.reader, source=recipe.source, split="test"
    )
    scores = evaluate(
        Model(), "shouting", recipe, samples, predictions=package / "p.jsonl",  # type: ignore[arg-type]
        controls=recipe.controls, batch_images=1, seed=0, reporter=QuietReporter(),
    )  # fmt: skip
    assert scores.metrics["loud"].value == 50.0
    assert scores.definition["runner"] == "shouting"


def test_names_of_other_packages_are_suggested(package: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'shouting'"):
        load_task("shoutin")
    with pytest.raises(UnknownNameError, match="did you mean 'loud-reader'"):
        DataFolder("x", package).samples("t", reader="loud-read", source="s", split="test")
    with pytest.raises(UnknownNameError, match="did you mean 'shouting'"):
        find_runner("shoutng")
