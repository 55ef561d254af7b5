"""The gate's reruns: what the committed baseline's runs give under today's code.

What belongs here: doing parts of an accepted run again, and handing over what came out. Whether it
may pass is `results/`'s business.

A quick rerun asks nothing of a processor that another one would answer differently: text is scored
again, trained weights are read and asked again (a few answers flip by rounding, which the paired
interval allows), and training is held to its first steps, since rounding grows with every step.
A full rerun trains every run again.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from encoder_bench.base.errors import EncoderBenchError, RecipeError
from encoder_bench.base.progress import Reporter
from encoder_bench.base.record import RunRecord
from encoder_bench.gate.baseline import baseline_records, read_baseline, weights_folder
from encoder_bench.gate.canaries import check_canaries
from encoder_bench.gate.check import Pairing, check, judge
from encoder_bench.gate.rescore import check_recorded_answers
from encoder_bench.gate.same_answers import check_same_answers
from encoder_bench.gate.verdicts import CheckResult, RunVerdict, merged
from encoder_bench.pipeline.plan import RunPlan, make_plan
from encoder_bench.results.grouping import scoring_recipe

RERUNS = ("quick", "full")

_ANSWERED_AGAIN = "answered again from the kept weights"


def rerun_quick(
    baseline: Path,
    reporter: Reporter,
    *,
    margin: float | None = None,
    data: str | None = None,
    device: str = "auto",
) -> CheckResult:
    """Do the cheap part of every accepted run again: minutes on two cores.

    All recorded answers, and right answers written awkwardly, are scored again and must read as
    they did. Runs whose trained weights the baseline keeps answer every test question again, which
    is judged like a fresh run, and begin their training again, whose first losses must agree.

    Args:
        baseline: the baseline's folder.
        reporter: where progress goes.
        margin: points that no score may fall; None takes the baseline's own.
        data: where the test data are, for runs on a folder; None for what the record names.
        device: of the model.

    Raises:
        RecordError: the baseline or its predictions are missing or damaged.
    """
    from encoder_bench.gate.first_losses import check_first_losses

    known = read_baseline(baseline)
    records = baseline_records(baseline, known)
    limit = known.margin if margin is None else margin
    with reporter.phase("recorded answers", len(records), "runs") as phase:
        verdicts = check_recorded_answers(baseline, records)
        verdicts += check_canaries(baseline, records)
        phase.advance(len(records))
    kept = {name: r for name, r in records.items() if weights_folder(baseline, r).is_dir()}
    with tempfile.TemporaryDirectory() as place:
        folder, pairings = Path(place), list[Pairing]()
        for name, record in kept.items():
            with _told_as_failure(name, record, verdicts):
                plan = todays_plan(record, results=baseline, data=data, device=device)
                verdicts.append(_recipe_verdict(name, record, plan))
                fresh = answer_again(baseline, record, plan, folder, reporter)
                pairings.append(Pairing(name, record, fresh, folder, _ANSWERED_AGAIN))
                verdicts.append(check_same_answers(name, baseline, record, folder, fresh))
                verdicts.append(check_first_losses(name, record, plan, reporter))
        verdicts += judge(baseline, pairings, limit)
    if not kept:
        reporter.warn(
            f"{baseline}: keeps no trained weights, so that no model was asked; accept a run with "
            "--keep-weights"
        )
    return CheckResult(limit, merged(verdicts))


def rerun_full(
    baseline: Path,
    results: Path,
    reporter: Reporter,
    *,
    margin: float | None = None,
    data: str | None = None,
    device: str = "auto",
) -> CheckResult:
    """Train and score every accepted run again into a results folder, and check that.

    On another processor a training ends a little elsewhere, as with another seed.

    Args:
        baseline: the baseline's folder.
        results: where the fresh runs go; finished ones there are taken as they are.
        reporter: where progress goes.
        margin: points that no score may fall; None takes the baseline's own.
        data: where the data are, for runs on a folder; None for what the record names.
        device: of the runs.

    Raises:
        EncoderBenchError: as `run`.
    """
    from encoder_bench.pipeline.run import run

    for record in baseline_records(baseline, read_baseline(baseline)).values():
        run(todays_plan(record, results=results, data=data, device=device), reporter)
    return check(baseline, results, margin=margin)


def todays_plan(
    record: RunRecord, *, results: Path, data: str | None = None, device: str = "auto"
) -> RunPlan:
    """Return the plan of a recorded run as today's recipes and defaults make it.

    Args:
        record: the run; of its recipes only the names are used.
        results: the results folder of the plan.
        data: where the data are; None for what the record names.
        device: of the model.

    Raises:
        RecipeError: a recipe is not there any more, or wrong.
        UnknownNameError: the encoder or the adapter is not there any more.
    """
    return make_plan(
        encoder=record.encoder.name,
        joint=record.joint,
        adapter=str(record.adapter.get("name")),
        data=data or str(record.data.get("name")),
        training_data=None if data else str(record.training_data.get("name")),
        tasks=list(record.tasks),
        seed=record.seed,
        limit=record.limit,
        results=results,
        device=device,
    )


def answer_again(
    baseline: Path, record: RunRecord, plan: RunPlan, folder: Path, reporter: Reporter
) -> RunRecord:
    """Ask a run's kept model every test question again, without the blind controls.

    Args:
        baseline: holds the trained weights.
        record: the accepted run.
        plan: today's, for recipes and data.
        folder: a results folder for the new predictions.
        reporter: where progress goes.

    Returns:
        The record with today's scores and data in place of its own.

    Raises:
        WeightsError: the encoder or the LLM found now is not the one of the run.
        DataError: the data cannot be read.
    """
    from encoder_bench.data.folder import open_data
    from encoder_bench.pipeline.load import load_run
    from encoder_bench.pipeline.predictor import ImagePredictor
    from encoder_bench.tasks.evaluate import evaluate
    from encoder_bench.tasks.task import read_samples

    source = open_data(plan.data, reporter)
    tasks = evaluate(
        ImagePredictor(load_run(baseline, record, device=plan.device)),
        [
            read_samples(source, name, recipe, limit=plan.limit, seed=plan.seed)
            for name, recipe in plan.tasks.items()
        ],
        folder / "predictions" / record.run_id,
        controls=False,
        batch_images=plan.adapter.evaluation_batch_images,
        seed=plan.seed,
        reporter=reporter,
    )
    return record.model_copy(update={"tasks": tasks, "data": source.description()})


def _recipe_verdict(name: str, record: RunRecord, plan: RunPlan) -> RunVerdict:
    """Fail where the named adapter recipe would not make the recorded run any more."""
    now = scoring_recipe(plan.adapter.model_dump(mode="json"))
    then = scoring_recipe(record.adapter)
    changed = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    failures = (
        (f"adapter recipe '{plan.adapter_name}' differs now in {', '.join(changed)}",)
        if changed
        else ()
    )
    return RunVerdict(name, record.run_id, None, failures, ())


@contextlib.contextmanager
def _told_as_failure(name: str, record: RunRecord, verdicts: list[RunVerdict]) -> Iterator[None]:
    """Turn what keeps a run from being done again into a failure of that run, not of the gate."""
    try:
        yield
    except EncoderBenchError as error:
        if isinstance(error, RecipeError):
            error = RecipeError(f"{error} (as run {record.run_id} was made)")
        verdicts.append(RunVerdict(name, record.run_id, None, (str(error),), ()))
