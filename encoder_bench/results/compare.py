"""Two rows on the samples that they share: differences, significance, and which samples flipped."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord
from encoder_bench.metrics.metric import Measure, measure_java_once, recorded_metric
from encoder_bench.metrics.statistics import Difference
from encoder_bench.results.grouping import adapter_key, data_key, setting_key, task_key
from encoder_bench.results.paired import Scores, difference, sample_scores, shared_scores
from encoder_bench.tasks.evaluate import measure_again
from encoder_bench.tasks.predictions import Prediction, read_predictions

RIGHT = 50.0
"""A sample is right from this score on, in percent; VQA's are 0, 30, 60, 90 or 100."""

Side = Sequence[tuple[RunRecord, Sequence[Prediction]]]
"""One side's runs, a seed each, with their answers to one task."""


@dataclass(frozen=True, slots=True)
class Flip:
    """A sample that the two sides scored differently, with what each said (seeds: ` / `)."""

    sample_id: str
    image_id: int | str
    question: str
    references: tuple[str, ...]
    prediction_a: str
    prediction_b: str
    score_a: float
    score_b: float


@dataclass(frozen=True, slots=True)
class RightWrong:
    """How many samples both sides, one of them, or neither got right: McNemar's table."""

    both: int
    only_a: int
    only_b: int
    neither: int


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One metric of one task, B − A, over the samples that both sides answered.

    `difference` is None where the metric cannot be computed here; `reason` says why.
    """

    metric: str
    score_a: float | None = None
    score_b: float | None = None
    difference: Difference | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """One task's primary metric, B − A, over the samples that both sides answered.

    Attributes:
        only_a: samples that only A answered.
        score_a: A's mean over the shared samples, in the metric's unit.
        difference: over images and seeds; None where nothing could be compared.
        right: who was right, on the mean of seeds; None for graded metrics.
        flips: samples scored differently, largest change first.
        metrics: every metric of the task; empty where only the primary one was asked for.
    """

    task: str
    column: str
    metric: str
    samples: int
    only_a: int
    only_b: int
    score_a: float | None = None
    score_b: float | None = None
    difference: Difference | None = None
    right: RightWrong | None = None
    flips: tuple[Flip, ...] = ()
    reason: str | None = None
    metrics: tuple[MetricComparison, ...] = ()


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Two sides task by task; `differing` names settings, beside the encoder, that differ."""

    runs_a: tuple[RunRecord, ...]
    runs_b: tuple[RunRecord, ...]
    tasks: tuple[TaskComparison, ...]
    differing: tuple[str, ...]


def compare_runs(
    results: Path, runs_a: Sequence[RunRecord], runs_b: Sequence[RunRecord]
) -> RunComparison:
    """Return the comparison, B − A, of two runs, or of all seeds of two rows, on every task.

    Raises:
        RecordError: predictions are missing or damaged, or the runs share no task.
    """
    runs = (*runs_a, *runs_b)
    shared = [task for task in runs_a[0].tasks if all(task in run.tasks for run in runs)]
    if not shared:
        raise RecordError(f"runs {runs_a[0].run_id} and {runs_b[0].run_id} have no task in common")
    tasks = []
    for task in shared:
        a, b = (
            [(run, read_predictions(results, run, task)) for run in side]
            for side in (runs_a, runs_b)
        )
        tasks.append(replace(compare_task(task, a, b), metrics=compare_metrics(task, a, b)))
    differing = differing_settings(runs_a[0], runs_b[0])
    return RunComparison(tuple(runs_a), tuple(runs_b), tuple(tasks), differing)


def compare_task(task: str, side_a: Side, side_b: Side) -> TaskComparison:
    """Return the comparison of one task's primary metric on the shared samples."""
    scores = side_a[0][0].tasks[task]
    metric, column = scores.primary, scores.column
    a, b = (sample_scores({r.seed: found for r, found in s}, metric) for s in (side_a, side_b))
    pair = shared_scores(a, b)
    shared = len(pair[0].samples) if pair else 0
    counts = (shared, len(a.samples) - shared, len(b.samples) - shared)
    if pair is None:
        reason = f"no sample has a score of {metric} in both runs"
        return TaskComparison(task, column, metric, *counts, reason=reason)
    a, b = pair
    scores_of = {s: both for s, *both in zip(a.samples, a.by_sample, b.by_sample, strict=True)}
    right = None
    if not recorded_metric(metric).graded:
        pairs = [(one >= RIGHT, other >= RIGHT) for one, other in scores_of.values()]
        cases = ((True, True), (True, False), (False, True), (False, False))
        right = RightWrong(*map(pairs.count, cases))
    flips, found = _flips(scores_of, side_a, side_b), difference(a, b)
    return TaskComparison(task, column, metric, *counts, a.mean, b.mean, found, right, flips)


def _flips(scores: Mapping[str, Sequence[float]], side_a: Side, side_b: Side) -> tuple[Flip, ...]:
    """Return the samples whose scores on the two sides differ, the largest change first."""
    asked = {each.sample_id: each for each in side_a[0][1]}
    said_a, said_b = _said(side_a), _said(side_b)
    flips = []
    for sample, (a, b) in scores.items():
        if not math.isclose(a, b, abs_tol=1e-6):  # rounding of floating-point sums
            each, texts = asked[sample], (said_a[sample], said_b[sample])
            flips.append(Flip(sample, each.image_id, each.question, each.references, *texts, a, b))
    return tuple(sorted(flips, key=lambda f: (-abs(f.score_b - f.score_a), f.sample_id)))


def _said(side: Side) -> dict[str, str]:
    """Return the different answers of a side's seeds by sample."""
    texts: dict[str, dict[str, None]] = {}
    for _, predictions in side:
        for each in predictions:
            texts.setdefault(each.sample_id, {})[each.prediction] = None
    return {sample: " / ".join(found) for sample, found in texts.items()}


def differing_settings(run_a: RunRecord, run_b: RunRecord) -> tuple[str, ...]:
    """Return what keeps two runs out of one table; empty where only the encoder differs."""
    found = []
    if setting_key(run_a) != setting_key(run_b):
        models = (run_a.language_model.weights_sha256, run_b.language_model.weights_sha256)
        equal = {
            "test data": data_key(run_a.data) == data_key(run_b.data),
            "training data": data_key(run_a.training_data) == data_key(run_b.training_data),
            "adapter recipe": adapter_key(run_a.adapter) == adapter_key(run_b.adapter),
            "language model": models[0] == models[1],
            "chat template": run_a.language_model.template == run_b.language_model.template,
            "limit": run_a.limit == run_b.limit,
        }
        found = [name for name, same in equal.items() if not same]
    shared = [task for task in run_a.tasks if task in run_b.tasks]
    found += [f"definition of {t}" for t in shared if task_key(run_a, t) != task_key(run_b, t)]
    return tuple(found)


def compare_metrics(task: str, side_a: Side, side_b: Side) -> tuple[MetricComparison, ...]:
    """Return the comparison of every metric that all runs list, A's primary one first.

    Corpus metrics (BLEU, F1) are no means over samples, so all answers are scored again by today's
    code, on the samples that all runs answered.
    """
    sides = [*side_a, *side_b]
    primary = side_a[0][0].tasks[task].primary
    listed = [run.tasks[task].metrics for run, _ in sides]
    names = [name for name in listed[0] if all(name in each for each in listed)]
    names.sort(key=lambda name: name != primary)
    answers = [{each.sample_id: each for each in found} for _, found in sides]
    first = answers[0].values()
    kept = [each for each in first if all(each.sample_id in other for other in answers)]
    if not kept:
        return ()
    aligned = [[found[each.sample_id] for each in kept] for found in answers]
    measure_java_once(
        (names, [each.prediction for each in found], [each.references for each in found])
        for found in aligned
    )
    try:
        measured = [
            measure_again(run, task, found).measures
            for (run, _), found in zip(sides, aligned, strict=True)
        ]
    except RecordError as error:
        return tuple(MetricComparison(name, reason=str(error)) for name in names)
    seeds = [run.seed for run, _ in sides]
    return tuple(
        _compared(name, [m.get(name) for m in measured], seeds, len(side_a), kept) for name in names
    )


def _compared(
    name: str,
    measures: Sequence[Measure | None],
    seeds: Sequence[int],
    first_b: int,
    samples: Sequence[Prediction],
) -> MetricComparison:
    """Compare one metric's measures of A's runs, before place `first_b`, with those of B's."""
    found = [measure for measure in measures if measure is not None]
    if len(found) < len(measures):
        return MetricComparison(name, reason="it needs the whole split")
    if any(measure.score is None for measure in found):
        reasons = [measure.reason for measure in found if measure.reason]
        reason = [*reasons, "not defined on these answers"][0]
        return MetricComparison(name, found[0].score, found[first_b].score, None, reason)
    a, b = (
        Scores(
            tuple(seeds[part]),
            tuple(each.sample_id for each in samples),
            tuple(str(each.image_id) for each in samples),
            np.stack([np.asarray(measure.values, dtype=np.float64) for measure in found[part]]),
            found[0].statistic,
        )
        for part in (slice(first_b), slice(first_b, None))
    )
    return MetricComparison(name, a.mean, b.mean, difference(a, b))
