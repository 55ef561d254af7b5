"""The gate: are runs the accepted ones, do they score no worse, do metrics read answers alike?"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from encoder_bench.base.errors import EncoderBenchError, RecordError
from encoder_bench.base.progress import Reporter
from encoder_bench.base.record import RunRecord, TaskScores, read_records
from encoder_bench.gate.baseline import (
    baseline_records,
    changed_keys,
    changed_settings,
    identity,
    read_baseline,
    weights_folder,
)
from encoder_bench.metrics.metric import Metric, recorded_metric
from encoder_bench.metrics.statistics import holm
from encoder_bench.pipeline.plan import NO_MIXTURE, RunPlan, make_plan
from encoder_bench.results.compare import TaskComparison, compare_task
from encoder_bench.results.formats import escape_markdown
from encoder_bench.results.grouping import data_key, scoring_recipe, scoring_task
from encoder_bench.tasks.evaluate import measure_again, prepare_recorded
from encoder_bench.tasks.predictions import Prediction, read_predictions

LEVEL = 0.05
"""Of the test that a score got worse, corrected over all scores that are checked together."""
COUNT_MARGIN = 1.0
"""Objects by which a counting error may grow, where the margin in points is larger."""
_OWN_FILE = " (settings given by flags are kept in an adapter file of your own)"
MAX_CHANGED = 0.03
"""Share of a kept model's answers that rounding may change. Answers are decoded greedily, so that
only a near tie between two words can turn."""
MAX_FLIPS = 10
"""Flipped samples that are printed per task."""
TOLERANCE = 1e-6
"""Points; float64 sums of thousands of scores differ by less on any machine."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was compared of an accepted run, by its identity, and what is wrong, a line each.

    `comparison` is of accepted answers (A) and present ones (B); `notes` are allowed differences.
    """

    run: str
    what: str
    failures: tuple[str, ...] = ()
    comparison: TaskComparison | None = None
    notes: tuple[str, ...] = ()

    def lines(self, text: Callable[[str], str]) -> Iterator[str]:
        """Yield the verdict, its failures and the samples that flipped, as a Markdown list."""
        comparison, outcome = self.comparison, "FAILED" if self.failures else "passed"
        if comparison is not None and (difference := comparison.difference) is not None:
            outcome += (
                f", {comparison.column} {comparison.score_a:.2f} -> {comparison.score_b:.2f} "
                f"({difference.value:+.2f} {difference.interval(2)}, p {difference.p:.3g}, "
                f"{len(comparison.flips)} of {comparison.samples} flipped)"
            )
        yield f"- {text(self.what)}: {text(outcome)}"
        yield from (f"  - **{text(failure)}**" for failure in self.failures)
        yield from (f"  - note: {text(note)}" for note in self.notes)
        flips = comparison.flips if comparison else ()
        for flip in sorted(flips, key=lambda f: (f.score_b - f.score_a, f.sample_id))[:MAX_FLIPS]:
            references = " / ".join(dict.fromkeys(flip.references))
            yield "  - " + text(
                f"{flip.sample_id} (image {flip.image_id}): {flip.question!r}, people "
                f"{references!r}, was {flip.prediction_a!r} ({flip.score_a:g}), "
                f"now {flip.prediction_b!r} ({flip.score_b:g})"
            )
        if len(flips) > MAX_FLIPS:
            yield f"  - and {len(flips) - MAX_FLIPS} more"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """All verdicts; `unknown` names fresh runs that no baseline entry is about."""

    margin: float
    verdicts: tuple[Verdict, ...]
    unknown: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and something was compared."""
        return bool(self.verdicts) and not any(verdict.failures for verdict in self.verdicts)

    def markdown(self, text: Callable[[str], str] = escape_markdown) -> str:
        """Return the verdicts run by run as Markdown; `text` escapes what they quote."""
        failed = {verdict.run for verdict in self.verdicts if verdict.failures}
        runs = sorted({verdict.run for verdict in self.verdicts})
        lines = ["## Scores against the baseline", ""]
        for run in runs:
            lines += [f"### {text(run)}: {'FAILED' if run in failed else 'passed'}", ""]
            lines += [line for v in self.verdicts if v.run == run for line in v.lines(text)]
            lines.append("")
        lines += [f"Unknown to the baseline: {text(name)}" for name in self.unknown]
        if not runs:
            lines.append("FAILED: no accepted run was run again")
        elif failed:
            lines.append(f"FAILED: {len(failed)} of {len(runs)} runs")
        else:
            lines.append(f"passed: {len(runs)} runs, margin {self.margin:g} points")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Pair:
    """An accepted run and the one compared with it, whose predictions are in `results`.

    `same_weights`: its kept model was asked again, so that only rounding may change an answer.
    """

    name: str
    accepted: RunRecord
    fresh: RunRecord
    results: Path
    same_weights: bool = False


def check(
    baseline: Path, results: Path, *, margin: float | None = None, partial: bool = False
) -> CheckResult:
    """Compare the newest run of each identity in `results` with the accepted one; see `judge`.

    `margin` None takes the baseline's own; `partial` skips accepted runs that were not run again.

    Raises:
        RecordError: the baseline, a record or predictions are missing or damaged.
    """
    known = read_baseline(baseline)
    limit = known.margin if margin is None else margin
    fresh = {identity(record): record for record in read_records(results)}
    accepted = baseline_records(baseline, known)
    again = [name for name in accepted if name in fresh]
    pairs = [Pair(name, accepted[name], fresh[name], results) for name in again]
    verdicts = judge(baseline, pairs, limit)
    if not partial:
        absent = accepted.keys() - fresh.keys()
        verdicts += [Verdict(name, "run", ("it was not run again",)) for name in absent]
    return CheckResult(limit, tuple(verdicts), tuple(sorted(fresh.keys() - accepted.keys())))


def rerun_quick(
    baseline: Path,
    reporter: Reporter,
    *,
    margin: float | None = None,
    data: str | None = None,
    device: str = "auto",
) -> CheckResult:
    """Do the cheap part of every accepted run again: about a minute on two cores.

    All recorded answers are scored again. Runs whose trained weights the baseline keeps answer
    every test question again, which is judged like a fresh run. `margin` is as for `check`; `data`
    is where the data are, for runs on a folder; None takes what the record names.

    Raises:
        RecordError: the baseline or its predictions are missing or damaged.
    """
    known = read_baseline(baseline)
    records = baseline_records(baseline, known)
    with reporter.phase("recorded answers", len(records), "runs") as phase:
        verdicts = check_recorded_answers(baseline, records)
        phase.advance(len(records))
    pairs = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, record in records.items():
            if not weights_folder(baseline, record).is_dir():
                continue
            try:
                plan = todays_plan(record, results=baseline, data=data, device=device)
                if changed := _changed_recipe(record, plan):
                    failure = f"adapter recipe '{plan.adapter_name}' differs now in {changed}"
                    failure += _OWN_FILE
                    verdicts.append(Verdict(name, "recipe", (failure,)))
                fresh = answer_again(baseline, record, plan, Path(temporary), reporter)
            except EncoderBenchError as error:  # of this run, not of the gate
                verdicts.append(Verdict(name, "run again", (str(error),)))
                continue
            pairs.append(Pair(name, record, fresh, Path(temporary), same_weights=True))
        limit = known.margin if margin is None else margin
        verdicts += judge(baseline, pairs, limit)
    if not pairs:
        reporter.warn(f"{baseline}: no model was asked; accept a run with --keep-weights")
    return CheckResult(limit, tuple(verdicts))


def rerun_full(
    baseline: Path,
    results: Path,
    reporter: Reporter,
    *,
    margin: float | None = None,
    data: str | None = None,
    device: str = "auto",
) -> CheckResult:
    """Train and score every accepted run into `results`, unless it is there, and check that.

    On another processor a training ends a little elsewhere, as with another seed. Arguments are
    those of `rerun_quick`.

    Raises:
        EncoderBenchError: as `run`.
    """
    from encoder_bench.pipeline.run import run

    plans = []
    for name, record in baseline_records(baseline, read_baseline(baseline)).items():
        plan = todays_plan(record, results=results, data=data, device=device)
        if changed := _changed_recipe(record, plan):
            raise RecordError(
                f"{baseline}: {name}: adapter recipe '{plan.adapter_name}' differs now in "
                f"{changed}, so it would train another run; accept one of today's recipe{_OWN_FILE}"
            )
        plans.append(plan)
    for plan in plans:
        run(plan, reporter)
    return check(baseline, results, margin=margin)


def _changed_recipe(record: RunRecord, plan: RunPlan) -> str:
    now = scoring_recipe(plan.adapter.model_dump(mode="json"))
    return changed_keys(scoring_recipe(record.adapter), now)


def todays_plan(
    record: RunRecord, *, results: Path, data: str | None = None, device: str = "auto"
) -> RunPlan:
    """Return the plan of a recorded run as today's recipes of the same names make it.

    Raises:
        RecipeError: a recipe is not there any more, or wrong.
        UnknownNameError: the encoder or the adapter is not there any more.
    """
    training = record.training_data
    return make_plan(
        encoder=record.encoder.name, joint=record.joint, adapter=str(record.adapter.get("name")),
        data=data or str(record.data.get("name")),
        training_data=data or str(training.get("folder") or training.get("name")),
        mixture=[str(stage.get("mixture") or NO_MIXTURE) for stage in record.adapter["stages"]],
        tasks=list(record.tasks), seed=record.seed, limit=record.limit, results=results,
        device=device,
    )  # fmt: skip


def answer_again(
    baseline: Path, record: RunRecord, plan: RunPlan, folder: Path, reporter: Reporter
) -> RunRecord:
    """Return a record with the scores of its kept model on every test question, asked again.

    There are no blind baselines. Predictions go to the results folder `folder`.

    Raises:
        WeightsError: the encoder or the LLM found now is not the one of the run.
        DataError: the data cannot be read.
    """
    from encoder_bench.data.folder import open_data
    from encoder_bench.pipeline.build import load_run
    from encoder_bench.pipeline.predictor import ImagePredictor
    from encoder_bench.tasks.evaluate import evaluate
    from encoder_bench.tasks.task import read_samples

    source = open_data(plan.data, reporter)
    asked = [read_samples(source, n, task, limit=plan.limit) for n, task in plan.tasks.items()]
    tasks = evaluate(
        ImagePredictor(load_run(baseline, record, device=plan.device)),
        asked,
        folder / "predictions" / record.run_id,
        controls=False,
        batch_images=plan.adapter.evaluation_batch_images,
        seed=plan.seed,
        reporter=reporter,
    )
    return record.model_copy(update={"tasks": tasks, "data": source.description()})


def check_recorded_answers(baseline: Path, records: Mapping[str, RunRecord]) -> list[Verdict]:
    """Score every recorded answer again: each must score and parse exactly as it did.

    Raises:
        RecordError: predictions are missing or damaged.
    """
    prepare_recorded(baseline, records.values())
    verdicts = []
    for name, record in records.items():
        for task in record.tasks:
            failures = _rescored(record, task, read_predictions(baseline, record, task))
            verdicts.append(Verdict(name, f"{task}, recorded answers scored again", (*failures,)))
    return verdicts


def _rescored(record: RunRecord, task: str, answers: Sequence[Prediction]) -> Iterator[str]:
    """Yield a line for each metric that scores recorded answers differently, and for parsing."""
    try:
        measured = measure_again(record, task, answers)
    except RecordError as error:
        yield str(error)
        return
    for metric, recorded in record.tasks[task].metrics.items():
        measure = measured.measures.get(metric)
        if recorded.value is None or (measure is None and record.limit is not None):
            continue  # with a limit, a metric of the whole split cannot be computed again
        if measure is None or measure.score is None:
            reason = "it is gone" if measure is None else measure.reason or "not defined"
            yield f"{metric} was {recorded.value:.2f} and is n/a now: {reason}"
            continue
        changed = [
            each.sample_id
            for each, now in zip(answers, measure.sample_scores(), strict=True)
            if metric in each.scores and _differ(each.scores[metric], now)
        ]
        if changed or _differ(recorded.value, measure.score):
            yield (
                f"{metric} scores {len(changed)} of {len(answers)} recorded answers differently, "
                f"{recorded.value:.2f} was recorded, {measure.score:.2f} now; the first: "
                f"{(changed or ['none'])[0]}"
            )
    pairs = zip(answers, measured.parsed, strict=True)
    if changed := [each.sample_id for each, now in pairs if each.parsed != now]:
        yield f"{len(changed)} of {len(answers)} answers are parsed differently: {changed[0]}"


def judge(baseline: Path, pairs: Sequence[Pair], margin: float) -> list[Verdict]:
    """Return a verdict on each pair of runs and on each of their tasks.

    Data, weights, recipes, metric versions and samples must be equal; a metric may have today's
    version where that scores every accepted answer as before. A task's primary score fails
    where the 95% interval of the paired difference lies on the worse side of zero and its p,
    corrected by Holm's method over all pairs and tasks, is below 0.05; or where the score gets
    worse by more than the margin. Other metrics and parse failures fail by the margin alone. So a
    few answers flipped by another processor's rounding pass, however many scores are checked, and
    a loss that the samples bear out does not.

    Raises:
        RecordError: predictions are missing or damaged.
    """
    compared: dict[tuple[str, str], TaskComparison] = {}
    of_runs: dict[str, list[str]] = {}
    for pair in pairs:
        a, b = pair.accepted, pair.fresh
        answers = {
            task: (read_predictions(baseline, a, task), read_predictions(pair.results, b, task))
            for task in a.tasks
            if task in b.tasks
        }
        for task, both in answers.items():
            compared[pair.name, task] = compare_task(task, [(a, both[0])], [(b, both[1])])
        changed = _changed_answers(answers.values()) if pair.same_weights else ()
        of_runs[pair.name] = [*_run_failures(a, b), *changed]
    tested = {key: c.difference.p for key, c in compared.items() if c.difference is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    verdicts = []
    for pair in pairs:
        notes = tuple(_notes(pair.accepted, pair.fresh))
        verdicts.append(Verdict(pair.name, "run", tuple(of_runs[pair.name]), notes=notes))
        for task, scores in pair.accepted.tasks.items():
            key, failures = (pair.name, task), ["the task was not run again"]
            if key in compared:
                now, p = pair.fresh.tasks[task], corrected.get(key, 1.0)
                failures = [
                    *_version_failures(baseline, pair.accepted, task, now),
                    *_task_failures(scores, now, compared[key], p, margin),
                ]
            what = f"{task}, kept model asked again" if pair.same_weights else task
            verdicts.append(Verdict(pair.name, what, tuple(failures), compared.get(key)))
    return verdicts


def _changed_answers(
    tasks: Iterable[tuple[Sequence[Prediction], Sequence[Prediction]]],
) -> Iterator[str]:
    """Yield a line where more answers of a kept model changed than rounding explains.

    Scores alone would not show it in a model that does not score much.
    """
    asked = [
        (then, now)
        for before, after in tasks
        for then, now in zip(before, after, strict=False)
        if then.sample_id == now.sample_id
    ]
    changed = [(then, now) for then, now in asked if then.prediction != now.prediction]
    if len(changed) > MAX_CHANGED * len(asked):
        then, now = changed[0]
        yield (
            f"{len(changed)} of {len(asked)} answers changed, more than the {MAX_CHANGED:.0%} that "
            f"rounding may change; the first {then.sample_id}: was {then.prediction!r}, now "
            f"{now.prediction!r}"
        )


def _run_failures(a: RunRecord, b: RunRecord) -> Iterator[str]:
    """Yield what must be equal for scores to be comparable at all, and is not."""
    ends = b.language_model.end_token  # older records do not say
    for what, then, now in (
        ("test data", data_key(a.data), data_key(b.data)),
        ("training data", data_key(a.training_data), data_key(b.training_data)),
        ("encoder weights", a.encoder.weights_sha256, b.encoder.weights_sha256),
        ("encoder preprocessing", a.encoder.transform, b.encoder.transform),
        ("encoder layer", a.encoder.layer, b.encoder.layer),
        ("LLM weights", a.language_model.weights_sha256, b.language_model.weights_sha256),
        ("chat template", a.language_model.template, b.language_model.template),
        ("end token", a.language_model.end_token or ends, ends),
    ):
        if then != now:
            yield f"{what}: accepted {then!s:.60}, now {now!s:.60}"
    if changed := changed_settings(a, b):
        yield f"adapter recipe: differs in {changed}"


def _version_failures(
    baseline: Path, record: RunRecord, task: str, fresh: TaskScores
) -> Iterator[str]:
    """Yield a line where metrics are of other versions that may score an answer differently."""
    then, now = record.tasks[task].metric_versions, fresh.metric_versions
    if changed := changed_keys(then, now):
        today = all(recorded_metric(n).version == v for n, v in now.items() if then.get(n) != v)
        if not today or any(_rescored(record, task, read_predictions(baseline, record, task))):
            yield f"metric versions differ: {changed}"


def _task_failures(
    accepted: TaskScores, fresh: TaskScores, comparison: TaskComparison, p: float, margin: float
) -> Iterator[str]:
    if changed := changed_keys(*(scoring_task(s.definition) for s in (accepted, fresh))):
        yield f"the task recipe differs in {changed}"
    if comparison.only_a or comparison.only_b:
        yield f"the samples differ: {comparison.only_a} are gone, {comparison.only_b} are new"
    difference, loss = comparison.difference, recorded_metric(comparison.metric).loss
    if difference is not None and difference.low is not None and difference.high is not None:
        least = min(loss(0.0, difference.low), loss(0.0, difference.high))
        if least > 0 and p < LEVEL:
            yield (
                f"{comparison.metric} got worse by {abs(difference.value):.2f}, 95% interval "
                f"{difference.interval(2)}, corrected p {p:.2g}"
            )
    for name, score in accepted.metrics.items():
        metric, now = recorded_metric(name), fresh.metrics.get(name)
        if score.value is None or metric.higher_is_better is None:
            continue
        if now is None or now.value is None:
            reason = "it is gone" if now is None else now.reason or "no reason given"
            yield f"{name} was {score.value:.2f} and is n/a now: {reason}"
        elif metric.loss(score.value, now.value) > (most := _margin(metric, margin)):
            yield (
                f"{name} got worse, from {score.value:.2f} to {now.value:.2f}, more than the "
                f"margin of {most:g}"
            )
    before, after = _unparsed(accepted), _unparsed(fresh)
    if after - before > margin:
        yield f"unparsed answers rose from {before:.1f}% to {after:.1f}%"


def _unparsed(scores: TaskScores) -> float:
    samples = scores.metrics[scores.primary].samples
    return 100.0 * scores.parse_failures / samples if samples else 0.0


def _notes(accepted: RunRecord, fresh: RunRecord) -> Iterator[str]:
    for package, version in sorted(accepted.versions.items()):
        now = fresh.versions.get(package, "not installed")
        if now != version:
            yield f"{package} was {version}, is {now}"
    if accepted.hardware != fresh.hardware:
        yield "the hardware differs"


def _margin(metric: Metric, points: float) -> float:
    return points if metric.unit == "percent" else min(points, COUNT_MARGIN)


def _differ(before: float | None, after: float | None) -> bool:
    if before is None or after is None:
        return before is not after
    return abs(before - after) > TOLERANCE
