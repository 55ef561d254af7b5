"""The Python interface: a run, its model, other tasks, the table."""

from __future__ import annotations

from pathlib import Path

import pytest

import encoder_bench
from encoder_bench.base.errors import RecordError

DATA = "scenes:5:64:2:12"


def test_from_a_run_to_the_table(tmp_path: Path) -> None:
    results = tmp_path / "results"
    record = encoder_bench.run(
        "tiny-mae", joint=True, data=DATA, tasks=["oc"], steps=1, results=results, quiet=True
    )
    assert record.joint
    assert record.encoder.name == "tiny-mae"

    frame = encoder_bench.table(results)
    own = frame[frame["Row"] == "encoder"]
    assert own["OC Acc"].tolist() == [record.tasks["oc"].metrics["counting_accuracy"].value]

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
