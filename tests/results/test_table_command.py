"""`encoder-bench table`: formats, ties without being asked, published figures written down."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_builders import make_run
from result_builders import make_record
from typer.testing import CliRunner

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import read_records, write_record
from encoder_bench.cli.app import app
from encoder_bench.results.contrasts import MAX_RUNS, usual_ties
from encoder_bench.results.score import EXTRA_COLUMNS


def table(results: Path, *arguments: str) -> Any:
    command = ["table", "--results", str(results), *arguments]
    return CliRunner().invoke(app, command, env={"COLUMNS": "300"})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name in ("deit", "siglip", "mae"):
        make_run(tmp_path, name, joint=False, skill=0.5, count=12, blind={"constant": 0.4})
    return tmp_path


def test_each_format_is_printed_alone_with_every_optional_column(results: Path) -> None:
    names = ",".join(EXTRA_COLUMNS)
    shown = {name: table(results, "--format", name, "--columns", names).stdout
             for name in ("md", "csv", "tex", "html", "json")}  # fmt: skip
    rows = json.loads(shown["json"])
    frame = pd.read_csv(io.StringIO(shown["csv"]))
    assert len(rows) == len(frame)
    for column in EXTRA_COLUMNS.values():
        assert column.header in rows[0]
        assert column.header in frame
        assert column.header in shown["md"]
        assert column.header in shown["html"]
        assert column.header.replace("%", r"\%") in shown["tex"]
    assert r"\toprule" in shown["tex"]
    assert shown["html"].startswith("<!doctype html>")


def test_ties_and_lift_are_there_without_being_asked(results: Path) -> None:
    text = table(results, "--write").stdout
    assert "not significantly worse than the best" in text
    assert "lift over blind" in text
    assert "VQA Acc lift" in (results / "table.csv").read_text()
    assert (results / "table.json").is_file()
    assert "not significantly worse" in (results / "table.md").read_text()
    assert "not significantly worse" not in table(results, "--no-ties").stdout


def test_missing_predictions_leave_ties_out_and_say_so(results: Path) -> None:
    record = read_records(results)[0]
    (results / "predictions" / record.run_id / "oc.jsonl").unlink()
    done = table(results)
    assert done.exit_code == 0
    assert "oc.jsonl is not there" in done.stderr
    asked = table(results, "--ties")
    assert isinstance(asked.exception, RecordError)


def test_very_many_runs_are_not_waited_for(tmp_path: Path) -> None:
    records = [make_record(seed=seed) for seed in range(MAX_RUNS + 1)]
    ties, reason = usual_ties(tmp_path, records)
    assert ties is None
    assert "--ties" in str(reason)


def test_published_figures_are_written_in_every_format(tmp_path: Path) -> None:
    for name in ("deit", "clip", "mae", "dino", "dinov2"):
        values = (50.0 + len(name), 60, 40, 80)
        write_record(tmp_path, make_record(name, values=values, data="coco"))
    done = table(tmp_path, "--compare", "reported", "--write")
    assert done.exit_code == 0, done.output
    assert "Kendall" in done.stdout
    body = json.loads((tmp_path / "reported.json").read_text())
    vqa = next(row for row in body["agreement"] if row["Column"] == "VQA Acc")
    assert vqa["Encoders"] == 5
    assert vqa["Spearman low"] < vqa["Spearman"] < vqa["Spearman high"]
    assert any("53.975" in note for note in body["footnotes"])
    for ending in ("md", "csv", "tex", "html"):
        assert (tmp_path / f"reported.{ending}").stat().st_size > 500


@pytest.mark.parametrize(
    ("wrong", "right"), [(("--format", "xlsx"), "'md', 'csv'"), (("--compare", "mine"), "reported")]
)
def test_a_wrong_name_lists_the_right_ones(
    results: Path, wrong: tuple[str, str], right: str
) -> None:
    done = table(results, *wrong)
    assert done.exit_code == 2
    assert f"Invalid value for '{wrong[0]}'" in done.output
    assert right in done.output
