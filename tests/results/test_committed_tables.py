"""`make table` on a clean clone changes nothing: the committed tables follow from the records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from encoder_bench.cli.app import app

COMMITTED = Path(__file__).resolve().parents[2] / "results"


@pytest.mark.parametrize("folder", [".", "baseline"])
def test_the_committed_tables_are_made_again(folder, tmp_path, monkeypatch):
    source, copied = COMMITTED / folder, tmp_path / "results"
    for name in ("records", "predictions"):
        if (source / name).is_dir():
            shutil.copytree(source / name, copied / name)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["table", "--results", "results", "--write"])
    assert result.exit_code == 0, result.output
    made = sorted(copied.glob("table.*"))
    assert [path.suffix for path in made] == [".csv", ".html", ".json", ".md", ".tex"]
    changed = [path.name for path in made if _content(path) != _content(source / path.name)]
    assert changed == []


def _content(path: Path) -> Any:
    """Return a table's text; of JSON, whose numbers are not rounded, what every SciPy gives."""
    text = path.read_text(encoding="utf-8")
    return (
        json.loads(text, parse_float=lambda n: float(f"{float(n):.8g}"))
        if path.suffix == ".json"
        else text
    )
