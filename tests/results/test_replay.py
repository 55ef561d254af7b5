"""The gate's reruns on a small real run: red on what is planted, green on another processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from result_builders import make_record, task_scores, write_predictions
from torch import Tensor

from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import recipe_folder
from encoder_bench.base.record import RunRecord, read_records
from encoder_bench.gate.baseline import accept, baseline_records, read_baseline
from encoder_bench.gate.canaries import check_canaries
from encoder_bench.gate.replay import rerun_full, rerun_quick
from encoder_bench.gate.report import lines
from encoder_bench.gate.rescore import check_recorded_answers
from encoder_bench.gate.same_answers import check_same_answers
from encoder_bench.gate.verdicts import CheckResult
from encoder_bench.metrics import vqa
from encoder_bench.mllm.projectors.linear import MLPProjector
from encoder_bench.pipeline.plan import make_plan
from encoder_bench.pipeline.run import run
from encoder_bench.training import batches as order

DATA = "scenes:5:64:2:24"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a results folder of one short run, its recipe, and the baseline made of it."""
    made = tmp_path_factory.mktemp("gate")
    recipe = (recipe_folder("adapters") / "quick.toml").read_text()
    for before, after in (
        ("steps = 1250", "steps = 18"),
        ("images_per_step = 8", "images_per_step = 4"),
    ):
        assert before in recipe
        recipe = recipe.replace(before, after)
    (made / "short.toml").write_text(recipe)
    plan = make_plan(
        adapter=str(made / "short.toml"),
        data=DATA,
        tasks=["vqa", "oc", "mci"],
        results=made / "results",
        device="cpu",
    )
    record = run(plan, QuietReporter()).record
    accept(
        made / "baseline",
        made / "results",
        [record.run_id],
        reason="first figures",
        keep_weights=True,
    )
    return made


def quick(folder: Path) -> CheckResult:
    return rerun_quick(folder / "baseline", QuietReporter(), device="cpu")


def failures(result: CheckResult) -> str:
    of_tasks = [line for run in result.runs for task in run.tasks for line in task.failures]
    return "\n".join([*(line for run in result.runs for line in run.failures), *of_tasks])


def test_the_same_code_passes_and_says_what_it_did(folder: Path) -> None:
    result = quick(folder)
    text = "\n".join(lines(result))
    assert result.passed, text
    assert "recorded answers scored again" in text
    assert "answered again from the kept weights" in text
    assert "answers changed when the kept model was asked again" in text
    assert "losses are at most 0.0" in text


def test_another_processors_rounding_passes(folder: Path) -> None:
    # Other vector instructions, other order of sums: what an older processor would compute.
    other = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    command = [sys.executable, "-m", "encoder_bench", "check", str(folder / "baseline"), "--quiet"]
    done = subprocess.run(
        [*command, "--rerun", "quick", "--device", "cpu"],
        env=os.environ | other,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_projector_with_a_wrong_grid_order_is_red(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = MLPProjector.forward

    def columns_first(self: MLPProjector, features: Tensor) -> Tensor:
        batch, tokens, width = features.shape
        side = int(tokens**0.5)
        grid = features.reshape(batch, side, side, width).transpose(1, 2)
        return right(self, grid.reshape(batch, tokens, width))

    monkeypatch.setattr(MLPProjector, "forward", columns_first)
    result = quick(folder)
    assert result.exit_code == 1
    assert "the loss of training step" in failures(result)


def test_a_metric_that_lower_cases_too_little_is_red(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = vqa.normalise
    monkeypatch.setattr(vqa, "normalise", lambda text: right(text) if text.islower() else text)
    baseline = folder / "baseline"
    records = baseline_records(baseline, read_baseline(baseline))
    result = CheckResult(5.0, tuple(check_canaries(baseline, records)))
    assert result.exit_code == 1
    assert "right answers written 'in capitals' otherwise: 100 was accepted, 0 now" in failures(
        result
    )


def test_a_metric_that_reads_a_recorded_answer_otherwise_is_red_and_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encoder_bench.metrics import short_answers

    baseline = folder / "baseline"
    records = baseline_records(baseline, read_baseline(baseline))
    assert all(verdict.passed for verdict in check_recorded_answers(baseline, records))
    right = short_answers.parse_count
    monkeypatch.setattr(short_answers, "parse_count", lambda text: (right(text) or 0) + 1)
    result = CheckResult(5.0, tuple(check_recorded_answers(baseline, records)))
    assert "48 recorded answers otherwise, the first oc/" in failures(result)
    assert "are parsed otherwise" in failures(result)


@pytest.mark.parametrize(("changed", "passes"), [(1, True), (3, True), (4, False), (60, False)])
def test_only_a_few_answers_may_change(tmp_path: Path, changed: int, passes: bool) -> None:
    def recorded(results: Path, first: int) -> RunRecord:
        draft = make_record(tasks={"oc": task_scores("oc", 50.0)})
        answers = [
            {"sample_id": f"oc/{n}", "image_id": n, "prediction": "3" if n < first else "2"}
            for n in range(100)
        ]
        sha = write_predictions(results / "predictions" / draft.run_id, "oc", answers)
        return draft.model_copy(update={"tasks": {"oc": task_scores("oc", 50.0, sha256=sha)}})

    accepted, fresh = recorded(tmp_path / "a", 0), recorded(tmp_path / "b", changed)
    verdict = check_same_answers("run", tmp_path / "a", accepted, tmp_path / "b", fresh)
    assert verdict.passed is passes
    assert f"{changed} of 100 answers changed" in verdict.notes[0]


def test_training_that_begins_otherwise_is_red(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = order.StageOrder.step
    monkeypatch.setattr(order.StageOrder, "step", lambda self, step: right(self, step + 1))
    result = quick(folder)
    assert "the loss of training step 1 was" in failures(result)


def test_other_encoder_weights_are_a_failure_of_the_run_and_not_of_the_gate(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encoder_bench.pipeline import load as finished

    monkeypatch.setattr(finished, "hash_parameters", lambda module: "0" * 64)
    result = quick(folder)
    assert result.exit_code == 1
    assert "weights found now are not those of run" in failures(result)


def test_a_recipe_that_changed_is_named(folder: Path) -> None:
    recipe = folder / "short.toml"
    before = recipe.read_text()
    try:
        recipe.write_text(before.replace("steps = 18", "steps = 19"))
        assert "differs now in stages" in failures(quick(folder))
    finally:
        recipe.write_text(before)


def test_a_full_rerun_finds_the_same_scores(folder: Path) -> None:
    # The run is there already, so that nothing is trained; `check` then compares it.
    result = rerun_full(folder / "baseline", folder / "results", QuietReporter(), device="cpu")
    assert result.passed
    assert len(read_records(folder / "results")) == 1


def test_weights_that_are_gone_cannot_be_kept(folder: Path, tmp_path: Path) -> None:
    from encoder_bench.base.errors import RecordError

    (record,) = read_records(folder / "baseline")
    (folder / "baseline" / "checkpoints").rename(tmp_path / "away")
    try:
        with pytest.raises(RecordError, match="trained weights are not there"):
            accept(tmp_path / "b", folder / "baseline", [record.run_id], reason="x",
                   keep_weights=True)  # fmt: skip
        assert not (tmp_path / "b").exists()
        assert quick(folder).passed, "without weights the answers are scored again all the same"
    finally:
        (tmp_path / "away").rename(folder / "baseline" / "checkpoints")
