"""The gate: red on what the samples bear out, green on rounding, and never silent."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
from result_builders import make_record, score, task_scores, write_predictions
from typer.testing import CliRunner

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord, read_records, write_record
from encoder_bench.cli.app import app
from encoder_bench.gate.baseline import accept, identity, read_baseline
from encoder_bench.gate.check import CheckResult, Verdict, check
from encoder_bench.results.runs import remove_runs
from encoder_bench.sweep.jobs import all_runs

SAMPLES = 120


def scored_run(
    results: Path,
    *,
    wrong: range = range(0, 40),
    torch: str = "2.9.0",
    created: str = "2026-01-01T00:00:00+00:00",
    encoder: str = "dino",
    text: str = "no",
    **options: Any,
) -> RunRecord:
    """Write a run whose OC answers are right but for the samples in `wrong`."""
    draft = make_record(encoder, torch=torch, tasks={"oc": task_scores("oc", 50.0)}, **options)
    answers = [
        {
            "sample_id": f"oc/{number}",
            "image_id": number,
            "question": "How many?",
            "prediction": text if number in wrong else "2",
            "references": ["2"],
            "scores": {"counting_accuracy": 0.0 if number in wrong else 100.0},
        }
        for number in range(SAMPLES)
    ]
    sha = write_predictions(results / "predictions" / draft.run_id, "oc", answers)
    value = 100.0 * (SAMPLES - len(wrong)) / SAMPLES
    scores = task_scores("oc", value, samples=SAMPLES, sha256=sha)
    record = draft.model_copy(update={"tasks": {"oc": scores}, "created": created})
    write_record(results, record)
    return record


def run_failures(result: CheckResult) -> str:
    return "; ".join(f for v in result.verdicts if v.what == "run" for f in v.failures)


def of_task(result: CheckResult) -> Verdict:
    (verdict,) = [verdict for verdict in result.verdicts if verdict.what == "oc"]
    return verdict


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    record = scored_run(tmp_path / "first")
    accept(tmp_path / "baseline", tmp_path / "first", [record.run_id], reason="first figures")
    return tmp_path / "baseline"


def test_the_same_scores_pass(baseline: Path, tmp_path: Path) -> None:
    scored_run(tmp_path / "fresh")
    result = check(baseline, tmp_path / "fresh")
    assert result.passed
    assert "passed: 1 runs" in result.markdown()


def test_a_few_answers_flipped_by_rounding_pass(baseline: Path, tmp_path: Path) -> None:
    # Other rounding, on another torch: three answers lost, two won.
    scored_run(tmp_path / "fresh", wrong=range(2, 43), torch="2.10.0")
    result = check(baseline, tmp_path / "fresh")
    assert result.passed
    assert "note: torch was 2.9.0, is 2.10.0" in result.markdown(str)


def test_a_loss_that_the_samples_bear_out_fails(baseline: Path, tmp_path: Path) -> None:
    scored_run(tmp_path / "fresh", wrong=range(0, 46), text="wrong now")
    result = check(baseline, tmp_path / "fresh", margin=50.0)
    assert not result.passed
    text = result.markdown(str)
    assert "counting_accuracy got worse by 5.00" in text
    assert "oc/40" in text
    assert "'wrong now' (0)" in text


def test_a_gain_passes(baseline: Path, tmp_path: Path) -> None:
    scored_run(tmp_path / "fresh", wrong=range(0, 10))
    assert check(baseline, tmp_path / "fresh").passed


def test_no_interval_excuses_more_than_the_margin(baseline: Path, tmp_path: Path) -> None:
    # 41 newly wrong, 38 newly right: an interval across zero, but 2.5 points down.
    scored_run(tmp_path / "fresh", wrong=range(38, 81))
    assert check(baseline, tmp_path / "fresh", margin=3.0).passed
    result = check(baseline, tmp_path / "fresh", margin=2.0)
    assert not result.passed
    assert "more than the margin of 2" in "; ".join(of_task(result).failures)


@pytest.mark.parametrize(
    ("field", "update"),
    [
        ("encoder weights", {"encoder": {"weights_sha256": "0" * 64}}),
        ("LLM weights", {"language_model": {"weights_sha256": "0" * 64}}),
        ("encoder preprocessing", {"encoder": {"transform": "crop"}}),
    ],
)
def test_other_weights_or_preprocessing_fail_even_with_equal_scores(
    baseline: Path, tmp_path: Path, field: str, update: dict[str, dict[str, str]]
) -> None:
    record = scored_run(tmp_path / "fresh")
    parts = {
        name: getattr(record, name).model_copy(update=values) for name, values in update.items()
    }
    write_record(tmp_path / "fresh", record.model_copy(update=parts))
    result = check(baseline, tmp_path / "fresh")
    assert not result.passed
    assert field in run_failures(result)


def test_other_data_of_the_same_name_fail(baseline: Path, tmp_path: Path) -> None:
    record = scored_run(tmp_path / "fresh")
    data = {"name": "scenes", "fingerprint": "other"}
    write_record(tmp_path / "fresh", record.model_copy(update={"data": data}))
    assert "test data" in run_failures(check(baseline, tmp_path / "fresh"))


def test_a_changed_recipe_names_its_keys(baseline: Path, tmp_path: Path) -> None:
    record = scored_run(tmp_path / "fresh")
    changed = {**record.adapter, "projector": {"name": "linear"}}
    write_record(tmp_path / "fresh", record.model_copy(update={"adapter": changed}))
    assert (
        run_failures(check(baseline, tmp_path / "fresh")) == "adapter recipe: differs in projector"
    )


def test_a_metric_of_another_version_and_another_prompt_fail(
    baseline: Path, tmp_path: Path
) -> None:
    record = scored_run(tmp_path / "fresh")
    scores = record.tasks["oc"].model_copy(
        update={
            "metric_versions": {"counting_accuracy": 2},
            "definition": {"prompt": "Q", "runner": "oc"},
        }
    )
    write_record(tmp_path / "fresh", record.model_copy(update={"tasks": {"oc": scores}}))
    failures = "; ".join(of_task(check(baseline, tmp_path / "fresh")).failures)
    assert "metric versions differ" in failures
    assert "task recipe differs in prompt" in failures


def test_a_run_that_was_not_repeated_fails_unless_a_part_was_asked_for(tmp_path: Path) -> None:
    first = tmp_path / "first"
    runs = [scored_run(first), scored_run(first, encoder="clip")]
    accept(tmp_path / "baseline", first, [run.run_id for run in runs], reason="both")
    scored_run(tmp_path / "fresh")
    assert not check(tmp_path / "baseline", tmp_path / "fresh").passed
    assert check(tmp_path / "baseline", tmp_path / "fresh", partial=True).passed
    nothing = check(tmp_path / "baseline", tmp_path / "empty", partial=True)
    assert not nothing.passed
    assert "no accepted run was run again" in nothing.markdown()


def test_a_run_that_the_baseline_does_not_know_is_named(baseline: Path, tmp_path: Path) -> None:
    scored_run(tmp_path / "fresh")
    other = scored_run(tmp_path / "fresh", encoder="mae")
    result = check(baseline, tmp_path / "fresh")
    assert result.passed
    assert result.unknown == (identity(other),)


def test_accept_replaces_keeps_the_reason_and_removes_the_old(
    baseline: Path, tmp_path: Path
) -> None:
    better = scored_run(tmp_path / "fresh", wrong=range(0, 10), torch="2.10.0")
    known = accept(baseline, tmp_path / "fresh", [better.run_id[:8]], reason="better", margin=3)
    assert list(known.runs.values()) == [better.run_id]
    assert [entry.reason for entry in known.history] == ["first figures", "better"]
    assert [path.stem for path in (baseline / "records").glob("*.json")] == [better.run_id]
    assert [path.name for path in (baseline / "predictions").iterdir()] == [better.run_id]
    assert read_baseline(baseline).margin == 3


def test_accept_without_a_reason_changes_nothing(baseline: Path, tmp_path: Path) -> None:
    before = (baseline / "baseline.json").read_bytes()
    record = scored_run(tmp_path / "fresh")
    with pytest.raises(RecordError, match="--reason is empty"):
        accept(baseline, tmp_path / "fresh", [record.run_id], reason=" ")
    assert (baseline / "baseline.json").read_bytes() == before


def test_an_edited_baseline_is_named(baseline: Path, tmp_path: Path) -> None:
    path = baseline / "baseline.json"
    path.write_text(path.read_text().replace('"margin": 5.0', '"margin": 50.0'))
    with pytest.raises(RecordError, match=r"baseline\.json: checksum"):
        check(baseline, tmp_path / "fresh")


def test_no_baseline_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="baseline accept"):
        check(tmp_path, tmp_path)


def test_the_command_prints_markdown_and_appends_an_escaped_step_summary(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored_run(tmp_path / "fresh", wrong=range(0, 60), text="a|b <script> \x07 *c*")
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    command = ["check", str(baseline), "--results", str(tmp_path / "fresh")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "FAILED: 1 of 1 runs" in done.stdout
    assert "a|b <script>" in done.stdout
    text = summary.read_text()
    assert text.startswith("before\n## Scores against the baseline")
    assert "<script>" not in text
    assert "a\\|b &lt;script&gt;" in text
    assert "FAILED: 1 of 1 runs" in text
    assert "and 10 more" in text


@pytest.mark.parametrize(
    ("before", "after", "passes"), [(9.0, 0.03, True), (0.03, 9.0, False), (0.6, 1.7, False)]
)
def test_a_smaller_error_is_an_improvement(
    tmp_path: Path, before: float, after: float, passes: bool
) -> None:
    for folder, value in (("first", before), ("fresh", after)):
        record = scored_run(tmp_path / folder)
        oc = record.tasks["oc"]
        metrics = {**oc.metrics, "counting_error_gvt": score(value), "yes_rate": score(90 - value)}
        oc = oc.model_copy(update={"metrics": metrics})
        write_record(tmp_path / folder, record.model_copy(update={"tasks": {"oc": oc}}))
    accept(tmp_path / "baseline", tmp_path / "first", [record.run_id], reason="first")
    result = check(tmp_path / "baseline", tmp_path / "fresh")
    assert result.passed is passes
    assert ("counting_error_gvt got worse" in "; ".join(of_task(result).failures)) is not passes


def _accept_one(folder: Path, results: Path, run: str) -> None:
    accept(folder, results, [run], reason=f"from {run}")


def test_processes_that_accept_at_once_lose_nothing(tmp_path: Path) -> None:
    first = tmp_path / "first"
    runs = [scored_run(first, encoder=f"e{number}").run_id for number in range(6)]
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_accept_one, args=(tmp_path / "baseline", first, run))
        for run in runs
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    known = read_baseline(tmp_path / "baseline")
    assert sorted(known.runs.values()) == sorted(runs)
    assert sorted(entry.reason for entry in known.history) == sorted(f"from {r}" for r in runs)


def test_chance_does_not_turn_one_of_many_scores_red(tmp_path: Path) -> None:
    # Eight answers lost and none won: p of 0.008, and one of forty scores that are checked.
    first, fresh = tmp_path / "first", tmp_path / "fresh"
    runs = [scored_run(first, encoder=f"e{number}") for number in range(40)]
    accept(tmp_path / "baseline", first, [run.run_id for run in runs], reason="first")
    scored_run(fresh, encoder="e0", wrong=range(0, 48))
    alone = check(tmp_path / "baseline", fresh, margin=50.0, partial=True)
    assert not alone.passed
    for number in range(1, 40):
        scored_run(fresh, encoder=f"e{number}")
    assert check(tmp_path / "baseline", fresh, margin=50.0).passed
    scored_run(fresh, encoder="e0", wrong=range(0, 60))
    assert not check(tmp_path / "baseline", fresh, margin=50.0).passed


def test_a_description_may_change(baseline: Path, tmp_path: Path) -> None:
    record = scored_run(tmp_path / "fresh")
    scores = record.tasks["oc"]
    described = {**scores.definition, "description": "counts", "column": "OC"}
    scores = scores.model_copy(update={"definition": described})
    write_record(tmp_path / "fresh", record.model_copy(update={"tasks": {"oc": scores}}))
    assert check(baseline, tmp_path / "fresh").passed


def test_flips_are_printed_though_the_gate_passes(baseline: Path, tmp_path: Path) -> None:
    scored_run(tmp_path / "fresh", wrong=range(2, 43), text="no")
    assert "oc/40 (image 40)" in check(baseline, tmp_path / "fresh").markdown(str)


def test_samples_of_other_images_are_not_paired(baseline: Path, tmp_path: Path) -> None:
    record = scored_run(tmp_path / "fresh", torch="2.10.0")
    folder = tmp_path / "fresh" / "predictions" / record.run_id
    lines = [json.loads(line) for line in (folder / "oc.jsonl").read_text().splitlines()]
    for line in lines:  # an annotation less before them
        line["image_id"] = line["image_id"] // 2 + 1000
    sha = write_predictions(folder, "oc", lines)
    tasks = {"oc": record.tasks["oc"].model_copy(update={"predictions_sha256": sha})}
    write_record(tmp_path / "fresh", record.model_copy(update={"tasks": tasks}))
    result = check(baseline, tmp_path / "fresh")
    assert not result.passed
    assert "the samples differ" in "; ".join(of_task(result).failures)


def test_runs_that_only_flags_tell_apart_are_refused(tmp_path: Path) -> None:
    record = scored_run(tmp_path)
    adapter = record.adapter | {"projector": {"name": "linear"}}
    other = record.model_copy(update={"run_id": "0123456789abcdef", "adapter": adapter})
    shutil.copytree(
        tmp_path / "predictions" / record.run_id, tmp_path / "predictions" / other.run_id
    )
    write_record(tmp_path, other)
    names = [record.run_id, other.run_id]
    with pytest.raises(RecordError, match=r"are one to a baseline .* and differ in projector"):
        accept(tmp_path / "baseline", tmp_path, names, reason="x")
    assert not (tmp_path / "baseline").exists()
    arguments = ["baseline", "accept", "--all", "--reason", "x", "--results", str(tmp_path)]
    refused = CliRunner().invoke(app, [*arguments, "--baseline", str(tmp_path / "baseline")])
    assert "differ in projector" in str(refused.exception)


def test_a_results_folder_that_is_its_own_baseline_keeps_its_runs(tmp_path: Path) -> None:
    old = scored_run(tmp_path)
    accept(tmp_path, tmp_path, [old.run_id], reason="first")
    new = scored_run(tmp_path, torch="2.10.0")
    accept(tmp_path, tmp_path, [new.run_id], reason="second")
    assert {path.stem for path in (tmp_path / "records").glob("*.json")} == {
        old.run_id, new.run_id,
    }  # fmt: skip


@pytest.mark.parametrize("margin", ["nan", "inf", "0", "-1"])
def test_a_margin_that_is_none_is_refused(baseline: Path, margin: str) -> None:
    for command in (["check", str(baseline)], ["baseline", "accept", "--all", "--reason", "x"]):
        done = CliRunner().invoke(app, [*command, "--margin", margin])
        assert "give points above 0" in str(done.exception)


def test_a_copy_of_a_record_beside_it_is_no_other_run(tmp_path: Path) -> None:
    record = scored_run(tmp_path)
    own = tmp_path / "records" / f"{record.run_id}.json"
    shutil.copy(own, own.with_stem(f"{record.run_id} (conflicted copy)"))
    assert len(read_records(tmp_path)) == 1
    known = accept(tmp_path / "baseline", tmp_path, [record.run_id], reason="first")
    assert len(known.runs) == 1
    for command in ("show", "rm"):
        done = CliRunner().invoke(app, ["results", command, "x copy", "--results", str(tmp_path)])
        assert isinstance(done.exception, RecordError)
    own.rename(own.with_stem("renamed"))
    own.with_stem(f"{record.run_id} (conflicted copy)").unlink()
    assert len(read_records(tmp_path)) == 1, "under another name alone it is the run"


def test_removing_a_run_removes_its_copies(tmp_path: Path) -> None:
    record = scored_run(tmp_path)
    own = tmp_path / "records" / f"{record.run_id}.json"
    shutil.copy(own, own.with_stem(f"Copy of {record.run_id}"))
    (line,) = all_runs(tmp_path)
    assert line.run_id == record.run_id
    assert list(remove_runs(tmp_path, [record.run_id])) == [record.run_id]
    assert not list(own.parent.iterdir())
