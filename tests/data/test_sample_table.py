"""Samples in columns are the samples that went in, and are grouped as lists of them were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_bench.data.sample import Sample
from encoder_bench.data.sample_table import ImageGroups, SampleTable, take_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SAMPLES = st.lists(
    st.builds(
        Sample,
        st.sampled_from(["vqa/1", "oc/x", "own"]) | TEXT,
        st.sampled_from(["vqa", "oc", "mci"]),
        st.integers(-(2**60), 2**60) | TEXT | st.sampled_from([5, "5", 42]),
        st.sampled_from(["/a/b.jpg", "c d.png"]).map(Path),
        TEXT,
        st.lists(TEXT, max_size=3).map(tuple),
        TEXT,
        st.dictionaries(TEXT, st.integers(0, 9) | TEXT, max_size=2),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(SAMPLES, st.integers(-13, 13), st.integers(-13, 13))
def test_a_table_is_a_sequence_of_its_samples(samples: list[Sample], start: int, end: int) -> None:
    table = SampleTable.of(samples)
    assert list(table) == samples
    assert [table[index] for index in range(len(table))] == samples
    assert table[start:end] == samples[start:end]
    assert table.images() == list(dict.fromkeys(s.image_id for s in samples))
    assert table.image_paths() == list(dict.fromkeys(s.image_path for s in samples))


@given(st.lists(st.integers(0, 9), max_size=4), st.data())
def test_rows_are_taken_across_the_pieces_of_a_table(sizes: list[int], data: st.DataObject) -> None:
    numbers = np.arange(sum(sizes))
    ends = np.cumsum(sizes)
    pieces = [pa.array(numbers[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    table = pa.table({"n": pa.chunked_array(pieces, pa.int64())})
    rows = data.draw(st.lists(st.sampled_from(range(len(table))))) if len(table) else []
    assert take_rows(table, np.asarray(rows, np.int64))["n"].to_pylist() == rows


def test_image_paths_can_be_those_of_some_images() -> None:
    root = Path("/data")
    wanted = [root / "3.jpg", root / "1.jpg", root / "absent.jpg"]
    for stored in (Path(), root):  # an index keeps paths relative to its data folder
        samples = [Sample(f"v/{n}", "v", n, stored / f"{n % 4}.jpg", "", (), "") for n in range(9)]
        table = SampleTable(SampleTable.of(samples).table, root, lambda: "")
        assert table.image_paths(wanted) == [root / "1.jpg", root / "3.jpg"]


@settings(deadline=None)
@given(SAMPLES, st.sets(st.sampled_from(["vqa", "oc", "mci"])))
def test_groups_are_the_samples_of_each_image_in_the_order_of_its_name(
    samples: list[Sample], tasks: set[str]
) -> None:
    expected: dict[int | str, list[Sample]] = {}
    for sample in samples:
        if sample.task in tasks:
            expected.setdefault(sample.image_id, []).append(sample)
    groups = ImageGroups(samples, sorted(tasks))
    assert sorted(map(str, expected)) == [str(groups.image(i)) for i in range(len(groups))]
    assert {groups.image(i): list(group) for i, group in enumerate(groups)} == expected


def test_numbers_of_texts_hold_across_the_pieces_of_a_table() -> None:
    samples = [Sample(f"vqa/{n}", "vqa", n * 7 % 5, Path("x"), str(n), (), "") for n in range(3000)]
    parts = [SampleTable.of(samples[at : at + 700]) for at in range(0, 3000, 700)]
    codes, texts = SampleTable.joined(parts).codes("image")
    assert [int(texts[code]) for code in codes] == [s.image_id for s in samples]


def test_the_fingerprint_follows_what_is_taught_and_its_order() -> None:
    def made(*names: str, task: str = "vqa") -> str:
        samples = [Sample(f"{task}/{n}", task, 1, Path("x"), n, (), "y") for n in names]
        return SampleTable.of(samples).fingerprint

    assert made("a", "b") == made("a", "b")
    assert len({made("a", "b"), made("b", "a"), made("a"), made("a", "b", task="oc")}) == 4
    table = SampleTable.of([Sample(f"v/{n}", "v", n, Path("x"), "", (), "") for n in range(4)])
    assert table.take(np.array([1, 2])).fingerprint != table.take(np.array([2, 1])).fingerprint
