"""Rows of the right shape with anything in them: each is read or counted, never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.data.mixture import Mixture, open_mixture
from encoder_bench.data.sample import IMAGE
from tests.mixtures.conftest import turns

GOOD = {"conversations": turns("Good?", "Yes.")}
_TEXT = st.text(st.characters(), max_size=6) | st.sampled_from(
    [
        "\ud800",
        "a\udcff",
        IMAGE,
        f"{IMAGE}\nWhat?",
        " ",
        "a\0b",
        "../a.jpg",
        "/etc/passwd",
        "x.tar/y.jpg",
    ]
)
_SCALAR = st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | _TEXT
_ANY = st.recursive(
    _SCALAR,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)
_ROLE = st.sampled_from(["human", "gpt", "user", "assistant", "system", "tool", "Human"]) | _ANY
_PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["image", "text"]) | _ANY}, optional={"text": _ANY}
)
_ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "from": _ROLE,
        "value": _TEXT | _ANY,
        "role": _ROLE,
        "content": _TEXT | st.lists(_PART | _ANY, max_size=2) | _ANY,
        "user": _TEXT | _ANY,
        "assistant": _TEXT | _ANY,
    },
)
_TURNS = st.lists(_TEXT, max_size=4).map(lambda texts: turns(*texts)) | st.lists(_ENTRY, max_size=3)
_ROW = st.fixed_dictionaries(
    {},
    optional={
        "id": _ANY,
        "image": _TEXT | st.lists(_TEXT | _ANY, max_size=2) | _ANY,
        "images": st.lists(_TEXT, max_size=2) | _ANY,
        "conversations": _TURNS | _ANY,
        "messages": _TURNS | _ANY,
        "texts": _TURNS | _ANY,
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


@pytest.fixture(autouse=True)
def _fresh_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(folder / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    yield
    shutil.rmtree(folder / "cache", ignore_errors=True)


def read(folder: Path, kind: str, name: str) -> Mixture:
    recipe = folder / "mix.toml"
    recipe.write_text(
        f'description = "d"\n[[sources]]\nname = "s"\nformat = "{kind}"\npath = "{name}"\n'
    )
    return open_mixture(str(recipe), folder, QuietReporter())


def check_accounts(mixture: Mixture, total: int) -> None:
    """Check that each row is used or counted, and that what is used keeps the contract."""
    [about] = mixture.description()["sources"].values()
    skipped = sum(entry["count"] for entry in about["skipped"].values())
    assert (about["read"], len(mixture) + skipped) == (total, total)
    for row in mixture:
        assert row.turns
        assert all(turn.user.strip() and turn.assistant.strip() for turn in row.turns)
        assert sum(turn.user.count(IMAGE) for turn in row.turns) == len(row.images)
    json.dumps(mixture.description()).encode()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(_ROW | _ANY, max_size=4), lines=st.booleans())
def test_any_rows_of_json(folder: Path, rows: list[Any], lines: bool) -> None:
    rows = [GOOD, *rows]
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    (folder / "rows.json").write_text(text)
    check_accounts(read(folder, "llava", "rows.json"), len(rows))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.binary(max_size=60),
    name=st.sampled_from(["a.json", "a.tsv", "a.csv", "a.tar", "a.arrow"]),
)
def test_any_bytes_are_one_line(folder: Path, data: bytes, name: str) -> None:
    kinds = {
        "json": "llava",
        "tsv": "captions",
        "csv": "captions",
        "tar": "webdataset",
        "arrow": "chat",
    }
    head = b"path\tcaption\n" if name == "a.tsv" else b"path,caption\n" if name == "a.csv" else b""
    (folder / name).write_bytes(head + data)
    with pytest.raises(DataError) as error:
        read(folder, kinds[name.partition(".")[2]], name)
    assert len(str(error.value).splitlines()) == 1


_CELL = st.none() | st.sampled_from(["", " ", "What?", IMAGE, f"{IMAGE} {IMAGE}"])
_CHAT = st.fixed_dictionaries(
    {
        "images": st.none()
        | st.lists(
            st.none()
            | st.fixed_dictionaries({"bytes": st.none() | st.binary(max_size=3), "path": _CELL}),
            max_size=2,
        ),
        "texts": st.none()
        | st.lists(
            st.none() | st.fixed_dictionaries({"user": _CELL, "assistant": _CELL}), max_size=2
        ),
    }
)
_FEATURES = datasets.Features(
    {
        "images": datasets.List(
            {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        ),
        "texts": datasets.List(
            {"user": datasets.Value("string"), "assistant": datasets.Value("string")}
        ),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(_CHAT, max_size=5))
def test_any_rows_of_arrow(folder: Path, rows: list[Any]) -> None:
    good = {"images": [], "texts": [{"user": "Good?", "assistant": "Yes."}]}
    shutil.rmtree(folder / "saved", ignore_errors=True)
    datasets.Dataset.from_list([*rows, good], features=_FEATURES).save_to_disk(folder / "saved")
    check_accounts(read(folder, "chat", "saved"), len(rows) + 1)
