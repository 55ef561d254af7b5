"""Two runs on the samples that they share: differences, significance, and which samples flipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord
from encoder_bench.metrics.metric import Measure, measure_java_once, recorded_metric
from encoder_bench.results.grouping import setting_key, task_key
from encoder_bench.results.paired import (
    McNemar,
    PairedDifference,
    SharedScores,
    mcnemar,
    measured_difference,
    paired_difference,
    sample_scores,
    shared_scores,
)
from encoder_bench.tasks.predictions import Prediction, read_predictions
from encoder_bench.tasks.rescore import measure_again

RIGHT = 50.0
"""A sample is right from this score on, in percent; VQA's are 0, 30, 60, 90 or 100."""


@dataclass(frozen=True, slots=True)
class Flip:
    """A sample that the two runs scored differently, with what each of them said."""

    sample_id: str
    image_id: int | str
    question: str
    references: tuple[str, ...]
    prediction_a: str
    prediction_b: str
    score_a: float
    score_b: float


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One metric of one task, B − A, over the samples that both runs answered.

    `difference` is None where the metric cannot be computed here; `reason` says why.
    """

    metric: str
    score_a: float | None
    score_b: float | None
    difference: PairedDifference | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """One task's primary metric, B − A, over the samples that both runs answered.

    Attributes:
        task: the task.
        column: its column in the table.
        metric: the primary metric.
        samples: shared samples.
        only_a: samples that only A answered; `only_b` likewise.
        score_a: A's mean over the shared samples, in the metric's unit; `score_b` likewise.
        difference: with its 95% interval, clustered on images, and p; None where nothing could be
            compared.
        right: McNemar's table and p; None for graded metrics.
        flips: samples scored differently, largest change first.
        reason: why there is no difference.
        metrics: every metric of the task; empty where only the primary one was asked for.
    """

    task: str
    column: str
    metric: str
    samples: int
    only_a: int
    only_b: int
    score_a: float | None
    score_b: float | None
    difference: PairedDifference | None
    right: McNemar | None
    flips: tuple[Flip, ...]
    reason: str | None = None
    metrics: tuple[MetricComparison, ...] = ()


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Two runs task by task; `differing` names settings, beside the encoder, that differ."""

    run_a: RunRecord
    run_b: RunRecord
    tasks: tuple[TaskComparison, ...]
    differing: tuple[str, ...]


def compare_runs(results: Path, run_a: RunRecord, run_b: RunRecord) -> RunComparison:
    """Return the comparison, B − A, of two runs on every task and metric of both.

    Raises:
        RecordError: predictions are missing or damaged, or the runs share no task.
    """
    shared = [task for task in run_a.tasks if task in run_b.tasks]
    if not shared:
        raise RecordError(f"runs {run_a.run_id} and {run_b.run_id} have no task in common")
    tasks = []
    for task in shared:
        a = read_predictions(results, run_a, task)
        b = read_predictions(results, run_b, task)
        metrics = compare_metrics(task, run_a, run_b, a, b)
        tasks.append(replace(compare_task(task, run_a, run_b, a, b), metrics=metrics))
    return RunComparison(run_a, run_b, tuple(tasks), differing_settings(run_a, run_b))


def compare_task(
    task: str,
    run_a: RunRecord,
    run_b: RunRecord,
    predictions_a: Sequence[Prediction],
    predictions_b: Sequence[Prediction],
) -> TaskComparison:
    """Return the comparison of one task's primary metric on the shared samples."""
    metric, column = run_a.tasks[task].primary, run_a.tasks[task].column
    a, b = sample_scores(predictions_a, metric), sample_scores(predictions_b, metric)
    pairs = shared_scores(a, b)
    shared = len(pairs.samples) if pairs else 0
    counts = (shared, len(a.scores) - shared, len(b.scores) - shared)
    if pairs is None:
        reason = f"no sample has a score of {metric} in both runs"
        return TaskComparison(task, column, metric, *counts, None, None, None, None, (), reason)
    right = None
    if not recorded_metric(metric).graded:
        right = mcnemar([s >= RIGHT for s in pairs.a], [s >= RIGHT for s in pairs.b])
    flips = _flips(pairs, predictions_a, predictions_b)
    difference = paired_difference(pairs)
    return TaskComparison(task, column, metric, *counts, *pairs.means, difference, right, flips)


def _flips(
    pairs: SharedScores, predictions_a: Sequence[Prediction], predictions_b: Sequence[Prediction]
) -> tuple[Flip, ...]:
    said_a = {each.sample_id: each for each in predictions_a}
    said_b = {each.sample_id: each for each in predictions_b}
    flips = []
    for sample, score_a, score_b in zip(pairs.samples, pairs.a, pairs.b, strict=True):
        if score_a != score_b:
            a, text_b = said_a[sample], said_b[sample].prediction
            asked = (a.image_id, a.question, a.references)
            flips.append(Flip(sample, *asked, a.prediction, text_b, score_a, score_b))
    return tuple(sorted(flips, key=lambda f: (-abs(f.score_b - f.score_a), f.sample_id)))


def differing_settings(run_a: RunRecord, run_b: RunRecord) -> tuple[str, ...]:
    """Return what keeps two runs out of one table; empty where only the encoder differs."""
    found = []
    if setting_key(run_a) != setting_key(run_b):
        models = (run_a.language_model.weights_sha256, run_b.language_model.weights_sha256)
        equal = {
            "test data": run_a.data == run_b.data,
            "training data": run_a.training_data == run_b.training_data,
            "language model": models[0] == models[1],
            "limit": run_a.limit == run_b.limit,
        }
        found = [name for name, same in equal.items() if not same] or ["adapter recipe"]
    shared = [task for task in run_a.tasks if task in run_b.tasks]
    found += [f"definition of {t}" for t in shared if task_key(run_a, t) != task_key(run_b, t)]
    return tuple(found)


def compare_metrics(
    task: str,
    run_a: RunRecord,
    run_b: RunRecord,
    predictions_a: Sequence[Prediction],
    predictions_b: Sequence[Prediction],
) -> tuple[MetricComparison, ...]:
    """Return the comparison of every metric that both runs list, A's primary one first.

    Corpus metrics (BLEU, F1) are no means over samples, so both runs' answers are scored again by
    today's code, and their column sums resampled together.
    """
    primary = run_a.tasks[task].primary
    both = [name for name in run_a.tasks[task].metrics if name in run_b.tasks[task].metrics]
    names = sorted(both, key=lambda name: name != primary)
    by_id = {each.sample_id: each for each in predictions_b}
    a = [each for each in predictions_a if each.sample_id in by_id]
    if not a:
        return ()
    b = [by_id[each.sample_id] for each in a]
    measure_java_once(
        (both, [each.prediction for each in side], [each.references for each in side])
        for side in (a, b)
    )
    try:
        measures_a = measure_again(run_a, task, a).measures
        measures_b = measure_again(run_b, task, b).measures
    except RecordError as error:
        return tuple(MetricComparison(name, None, None, None, str(error)) for name in names)
    images = [str(each.image_id) for each in a]
    return tuple(
        _compared(name, measures_a.get(name), measures_b.get(name), images) for name in names
    )


def _compared(
    name: str, a: Measure | None, b: Measure | None, images: Sequence[str]
) -> MetricComparison:
    if a is None or b is None:
        return MetricComparison(name, None, None, None, "it needs the whole split")
    if a.score is None or b.score is None:
        reason = a.reason or b.reason or "not defined on these answers"
        return MetricComparison(name, a.score, b.score, None, reason)
    left, right = np.asarray(a.values, float), np.asarray(b.values, float)
    difference = measured_difference(left, right, images, a.statistic)
    return MetricComparison(name, a.score, b.score, difference)
