"""The gate: are fresh runs the accepted ones, and do they score no worse?

What belongs here: how a verdict is reached. Its shape is `verdicts.py`, its printing
`regression_report.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from encoder_bench.base.recipes import TaskRecipe, scoring_settings
from encoder_bench.base.record import RunRecord, TaskScores, read_records
from encoder_bench.gate.baseline import baseline_records, identity, read_baseline
from encoder_bench.gate.verdicts import CheckResult, RunVerdict, TaskVerdict
from encoder_bench.metrics.metric import Metric, recorded_metric
from encoder_bench.metrics.statistics import holm
from encoder_bench.results.compare import TaskComparison, compare_task
from encoder_bench.results.grouping import data_key, scoring_recipe
from encoder_bench.results.paired import PairedDifference
from encoder_bench.tasks.predictions import read_predictions

LEVEL = 0.05
"""Of the test that a score fell, corrected over all scores that are checked together."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """An accepted run and the one held against it.

    Attributes:
        name: the run's identity in the baseline.
        accepted: the accepted record; its predictions lie in the baseline.
        fresh: the record held against it.
        results: the results folder of `fresh`.
        label: of what was done with a task, put behind its name; empty for a plain run.
    """

    name: str
    accepted: RunRecord
    fresh: RunRecord
    results: Path
    label: str = ""


def check(
    baseline: Path, results: Path, *, margin: float | None = None, partial: bool = False
) -> CheckResult:
    """Compare the newest fresh run of each identity with the accepted one.

    See `judge` for what fails.

    Args:
        baseline: the baseline's folder.
        results: the results folder with fresh runs.
        margin: points; None takes the baseline's own.
        partial: pass over accepted runs that were not run again, unless none was.

    Raises:
        RecordError: the baseline, a record or predictions are missing or damaged.
    """
    known = read_baseline(baseline)
    limit = known.margin if margin is None else margin
    fresh = {identity(record): record for record in read_records(results)}
    pairings, absent = [], []
    for name, accepted in baseline_records(baseline, known).items():
        record = fresh.get(name)
        if record is not None:
            pairings.append(Pairing(name, accepted, record, results))
        elif not partial:
            absent.append(RunVerdict(name, accepted.run_id, None, ("it was not run again",), ()))
    unknown = tuple(sorted(set(fresh) - set(known.runs)))
    verdicts = [*judge(baseline, pairings, limit), *absent]
    return CheckResult(limit, tuple(sorted(verdicts, key=lambda run: run.name)), unknown)


def judge(baseline: Path, pairings: Sequence[Pairing], margin: float) -> list[RunVerdict]:
    """Return a verdict on each pairing.

    Exact-replay fields (data, weights, recipes, metric versions, the samples) must be equal. A
    task's primary score fails when the 95% interval of the paired difference lies below zero and
    its p, corrected by Holm's method over all pairings and tasks, is below 0.05; or when the score
    falls by more than the margin. Other metrics and parse failures fail by the margin alone. So a
    few answers flipped by another processor's rounding pass, however many scores are checked, and
    a loss that the samples bear out does not.

    Args:
        baseline: the baseline's folder.
        pairings: accepted runs and those held against them.
        margin: points that no score may fall.

    Raises:
        RecordError: predictions are missing or damaged.
    """
    compared = [_comparisons(baseline, pairing) for pairing in pairings]
    tested = [c for of_run in compared for c in of_run.values() if c.difference is not None]
    corrected = dict(
        zip(
            (id(comparison) for comparison in tested),
            holm([c.difference.p for c in tested if c.difference is not None]),
            strict=True,
        )
    )
    return [
        _run_verdict(pairing, comparisons, corrected, margin)
        for pairing, comparisons in zip(pairings, compared, strict=True)
    ]


def _comparisons(baseline: Path, pairing: Pairing) -> dict[str, TaskComparison]:
    accepted, fresh = pairing.accepted, pairing.fresh
    return {
        task: compare_task(
            task,
            accepted,
            fresh,
            read_predictions(baseline, accepted, task),
            read_predictions(pairing.results, fresh, task),
        )
        for task in accepted.tasks
        if task in fresh.tasks
    }


def _run_verdict(
    pairing: Pairing,
    comparisons: Mapping[str, TaskComparison],
    corrected: Mapping[int, float],
    margin: float,
) -> RunVerdict:
    accepted, fresh = pairing.accepted, pairing.fresh
    failures = [
        f"{what}: {_change(a, b)}"
        for what, (a, b) in _replay_fields(accepted, fresh).items()
        if a != b
    ]
    tasks = []
    for task in accepted.tasks:
        label = f"{task}, {pairing.label}" if pairing.label else task
        comparison = comparisons.get(task)
        if comparison is None:
            tasks.append(TaskVerdict(label, None, ("the task was not run again",)))
            continue
        p = corrected.get(id(comparison), 1.0)
        scores = accepted.tasks[task], fresh.tasks[task]
        found = tuple(_task_failures(*scores, comparison, p, margin))
        tasks.append(TaskVerdict(label, comparison, found))
    notes = tuple(_notes(accepted, fresh))
    return RunVerdict(
        pairing.name, accepted.run_id, fresh.run_id, tuple(failures), tuple(tasks), notes
    )


def _replay_fields(a: RunRecord, b: RunRecord) -> Mapping[str, tuple[object, object]]:
    """Return what must be equal for scores to be comparable at all."""
    return {
        "test data": (data_key(a.data), data_key(b.data)),
        "training data": (data_key(a.training_data), data_key(b.training_data)),
        "encoder weights": (a.encoder.weights_sha256, b.encoder.weights_sha256),
        "encoder preprocessing or layer": (
            (a.encoder.transform, a.encoder.layer),
            (b.encoder.transform, b.encoder.layer),
        ),
        "LLM weights": (a.language_model.weights_sha256, b.language_model.weights_sha256),
        "adapter recipe": (scoring_recipe(a.adapter), scoring_recipe(b.adapter)),
    }


def _task_failures(
    accepted: TaskScores,
    fresh: TaskScores,
    comparison: TaskComparison,
    p: float,
    margin: float,
) -> Iterator[str]:
    if accepted.metric_versions != fresh.metric_versions:
        yield (
            f"metric versions differ: accepted {_brief(accepted.metric_versions)}, "
            f"now {_brief(fresh.metric_versions)}"
        )
    then, now = (scoring_settings(TaskRecipe, s.definition) for s in (accepted, fresh))
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if changed:
        yield f"the task recipe differs in {', '.join(changed)}"
    if comparison.only_a or comparison.only_b:
        yield (f"the samples differ: {comparison.only_a} are gone, {comparison.only_b} are new")
    difference, metric = comparison.difference, recorded_metric(comparison.metric)
    if difference is not None and _is_loss(metric, difference) and p < LEVEL:
        moved = "fell" if difference.value < 0 else "rose"
        yield (
            f"{metric.name} {moved} by {abs(difference.value):.2f}, 95% interval "
            f"{difference.interval(2)}, corrected p {p:.2g}"
        )
    yield from _margin_failures(accepted, fresh, margin)


def _is_loss(metric: Metric, difference: PairedDifference) -> bool:
    """Return whether the whole 95% interval of a difference is on the metric's worse side."""
    ends = (difference.low, difference.high)
    return all(end is not None and metric.loss(0.0, end) > 0 for end in ends)


def _margin_failures(accepted: TaskScores, fresh: TaskScores, margin: float) -> Iterator[str]:
    for name, score in accepted.metrics.items():
        metric, now = recorded_metric(name), fresh.metrics.get(name)
        if score.value is None or metric.higher_is_better is None:
            continue
        if now is None or now.value is None:
            reason = "it is gone" if now is None else now.reason or "no reason given"
            yield f"{name} was {score.value:.2f} and is n/a now: {reason}"
        elif metric.loss(score.value, now.value) > margin:
            moved = "fell" if now.value < score.value else "rose"
            yield (
                f"{name} {moved} from {score.value:.2f} to {now.value:.2f}, more than the margin "
                f"of {margin:g}"
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


def _change(a: object, b: object) -> str:
    """Name the keys in which two tables differ, or show both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(str(key) for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        return f"differs in {', '.join(keys)}"
    return f"accepted {_brief(a)}, now {_brief(b)}"


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
