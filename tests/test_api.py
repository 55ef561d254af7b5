"""The Python interface: a run, its model, other tasks, the table."""

from __future__ import annotations

import doctest
import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient
from typer.testing import CliRunner

import encoder_bench
from encoder_bench.base.errors import DataError, RecordError
from encoder_bench.cli.app import app

DATA = "scenes:5:64:2:12"
DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_from_a_run_to_the_table(tmp_path: Path) -> None:
    results = tmp_path / "results"
    record = encoder_bench.run(
        "tiny-mae", joint=True, data=DATA, tasks=["oc"], steps=1, results=results, quiet=True
    )
    assert record.joint
    assert record.encoder.name == "tiny-mae"
    assert record.command == (
        f"encoder_bench.run(encoder='tiny-mae', joint=True, data='{DATA}', tasks=['oc'], steps=1, "
        f"results='{results}', quiet=True)"
    )

    frame = encoder_bench.table(results)
    own = frame[frame["Row"] == "encoder"]
    assert own["OC Acc"].tolist() == [record.tasks["oc"].metrics["counting_accuracy"].value]
    printed = CliRunner().invoke(app, ["table", "--results", str(results), "--format", "csv"])
    assert frame.columns.tolist() == pd.read_csv(io.StringIO(printed.stdout)).columns.tolist()

    model = encoder_bench.load_model("tiny-mae/joint", results=results)
    assert not model.training

    scores = encoder_bench.evaluate(
        record, tasks=["oc", "mci"], output=tmp_path / "other", data=DATA, results=results,
        quiet=True,
    )  # fmt: skip
    assert scores["oc"].metrics == record.tasks["oc"].metrics
    assert scores["mci"].metrics["yesno_accuracy"].samples > 0


def test_an_unknown_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no run 'tiny-clip/joint'"):
        encoder_bench.load_model("tiny-clip/joint", results=tmp_path)


def test_the_page_says_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"^```.*$", "", (DOCS / "python.md").read_text(), flags=re.MULTILINE)
    page = doctest.DocTestParser().get_doctest(text, {}, "python.md", "python.md", 0)
    found = doctest.DocTestRunner().run(page)
    assert found.attempted > 10
    assert found.failed == 0


def test_every_function_is_named_on_the_page() -> None:
    text = (DOCS / "python.md").read_text()
    assert [n for n in encoder_bench.__all__ if f"`{n}`" not in text] == ["__version__"]


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(DOCS / "python.ipynb", 4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=250, kernel_name="python3", resources=where).execute()
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()


def test_the_citation_is_of_this_version() -> None:
    lines = (DOCS.parent / "CITATION.cff").read_text().splitlines()
    assert f"version: {encoder_bench.__version__}" in lines


def test_answers_of_another_run_are_not_taken(tmp_path: Path) -> None:
    results = tmp_path / "results"
    one, other = (
        encoder_bench.run(
            "tiny-mae", data=DATA, tasks=["oc"], steps=steps, results=results, quiet=True
        )
        for steps in (1, 2)
    )
    asked: Any = {"tasks": ["mci"], "data": DATA, "results": results, "quiet": True}
    scores = encoder_bench.evaluate(one, output=tmp_path / "one", **asked)
    assert encoder_bench.evaluate(one, output=tmp_path / "one", **asked) == scores
    for changed in ({}, {"data": "scenes:6:64:2:12"}, {"limit": 3}):
        run = one if changed else other
        with pytest.raises(DataError, match="mci are not known to be of this run, these data"):
            encoder_bench.evaluate(run, output=tmp_path / "one", **asked | changed)
    (tmp_path / "one" / "evaluation.json").unlink()
    with pytest.raises(DataError, match="mci are not known to be of this run"):
        encoder_bench.evaluate(one, output=tmp_path / "one", **asked)


def test_an_edited_language_model_is_another_run(tmp_path: Path) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(Path(encoder_bench.__path__[0]) / "bundled" / "llm" / "tiny-llama", folder)
    config = folder / "config.json"
    runs = []
    for eps in (1e-6, 1e-6, 1e-2):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": eps}))
        runs.append(
            encoder_bench.run(
                "tiny-mae", data=DATA, tasks=["oc"], steps=1, results=tmp_path / "results",
                settings={"llm.name": str(folder)}, quiet=True,
            ).run_id
        )  # fmt: skip
    assert runs[0] == runs[1] != runs[2]


def test_threads_wait_for_each_other_and_random_numbers_stay_the_callers(tmp_path: Path) -> None:
    """PyTorch's generators are of the whole process, and so is what transformers sets to load."""

    def losses(results: Path, seed: int) -> list[float]:
        made = encoder_bench.run(
            "tiny-dino", tasks=["oc"], data=DATA, results=results, steps=2, seed=seed, limit=2,
            quiet=True,
        )  # fmt: skip
        return list(made.training["losses"])

    with ThreadPoolExecutor(2) as pool:
        threads = list(pool.map(losses, [tmp_path / "a"] * 2, (0, 1)))
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    alone = [losses(tmp_path / "b", seed) for seed in (0, 1)]
    assert torch.equal(torch.rand(1), expected)
    assert threads == alone
