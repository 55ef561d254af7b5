"""Samples in columns are the samples that went in, and are grouped as lists of them were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_bench.data.sample import Sample
from encoder_bench.data.sample_table import ImageGroups, SampleTable

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
