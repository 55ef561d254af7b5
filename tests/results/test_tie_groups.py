"""Tie groups: who is not significantly worse than the best."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_builders import make_run
from result_builders import make_record

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import read_records
from encoder_bench.metrics.statistics import holm
from encoder_bench.results.formats.markdown import to_markdown
from encoder_bench.results.table import table, write_tables
from encoder_bench.results.ties import best_ties


def test_holm_against_the_published_steps() -> None:
    # Four tests: 4 p1, 3 p2, 2 p3, p4, each at least the one before (Holm 1979).
    assert holm([0.005, 0.011, 0.02, 0.04]) == pytest.approx([0.02, 0.033, 0.04, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_clear_loser_is_out_and_a_near_equal_ties(tmp_path: Path) -> None:
    make_run(tmp_path, "best", joint=False, skill=0.95, count=80)
    make_run(tmp_path, "nearest", joint=False, skill=0.93, count=80)
    make_run(tmp_path, "loser", joint=False, skill=0.1, count=80)
    records = read_records(tmp_path)
    ties = best_ties(tmp_path, records)
    groups = [labels for (_, _, column), labels in ties.items() if column == "OC Acc"]
    assert groups == [frozenset({"BEST", "NEAREST"})]
    frame = table(records, ties=ties).set_index("Visual Encoder")
    assert not frame["OC Acc tied"]["LOSER"]
    assert not frame["OC Acc tied"]["no image"]
    assert "not significantly worse" in to_markdown(table(records, ties=ties))
    assert "not significantly worse" not in to_markdown(table(records))


def test_seeds_are_averaged_sample_by_sample(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, "best", joint=False, skill=0.95, count=40, seed=seed)
        make_run(tmp_path, "loser", joint=False, skill=0.1, count=40, seed=seed)
    ties = best_ties(tmp_path, read_records(tmp_path))
    assert set(ties.values()) == {frozenset({"BEST"})}


def test_a_half_of_one_has_no_ties(tmp_path: Path) -> None:
    make_run(tmp_path, "best", joint=False, skill=0.9, count=4)
    assert best_ties(tmp_path, read_records(tmp_path)) == {}


def test_missing_predictions_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"vqa\.jsonl: predictions cannot be read"):
        best_ties(tmp_path, [make_record("a"), make_record("b")])


def test_write_tables_marks_ties_when_asked(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_run(tmp_path, name, joint=False, skill=0.5, count=12)
    write_tables(tmp_path, ties=True)
    assert "not significantly worse" in (tmp_path / "table.md").read_text()
