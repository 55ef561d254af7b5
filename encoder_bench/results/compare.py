"""Two runs on the samples that they share: difference, significance, and which samples flipped.

What belongs here: pairing predictions and putting statistics on the pairs. The statistics
themselves are `encoder_bench.metrics.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord
from encoder_bench.metrics.metric import recorded_metric
from encoder_bench.results.compare_metrics import MetricComparison, compare_metrics
from encoder_bench.results.grouping import setting_key
from encoder_bench.results.paired import McNemar, PairedDifference, mcnemar, paired_difference
from encoder_bench.tasks.predictions import Prediction, read_predictions

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
class TaskComparison:
    """One task, B less A, over the samples that both runs answered; the primary metric above all.

    Attributes:
        task: the task.
        column: its column in the table.
        metric: the metric compared.
        samples: shared samples.
        only_a: samples that only A answered; `only_b` likewise.
        score_a: A's mean over the shared samples, in the metric's unit; `score_b` likewise.
        difference: B less A with its 95% interval, clustered on images, and p; None where
            nothing could be compared.
        right: McNemar's table and p; None for metrics that are not right or wrong (captions).
        flips: samples scored differently, largest change first.
        reason: why there is no difference.
        metrics: every metric of the task, the primary one among them; empty where only the
            primary one was asked for.
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


def compare_runs(
    results_a: Path, run_a: RunRecord, run_b: RunRecord, *, results_b: Path | None = None
) -> RunComparison:
    """Compare two runs on every task and metric that both have, from their predictions.

    Args:
        results_a: the results folder of A (and of B, unless told otherwise).
        run_a: the first run; differences are B less A.
        run_b: the second run.
        results_b: B's results folder, where it is another.

    Raises:
        RecordError: predictions are missing or damaged, or the runs share no task.
    """
    shared = [task for task in run_a.tasks if task in run_b.tasks]
    if not shared:
        raise RecordError(f"runs {run_a.run_id} and {run_b.run_id} have no task in common")
    tasks = []
    for task in shared:
        a = read_predictions(results_a, run_a, task)
        b = read_predictions(results_b or results_a, run_b, task)
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
    scored_a = _scored(predictions_a, metric)
    scored_b = _scored(predictions_b, metric)
    shared = [sample_id for sample_id in scored_a if sample_id in scored_b]
    only_a, only_b = len(scored_a) - len(shared), len(scored_b) - len(shared)
    if not shared:
        return TaskComparison(
            task, column, metric, 0, only_a, only_b, None, None, None, None, (),
            f"no sample has a score of {metric} in both runs",
        )  # fmt: skip
    pairs = [(scored_a[sample_id], scored_b[sample_id]) for sample_id in shared]
    a = [score for (_, score), _ in pairs]
    b = [score for _, (_, score) in pairs]
    images = [str(prediction.image_id) for (prediction, _), _ in pairs]
    graded = recorded_metric(metric).graded
    return TaskComparison(
        task=task,
        column=column,
        metric=metric,
        samples=len(shared),
        only_a=only_a,
        only_b=only_b,
        score_a=math.fsum(a) / len(a),
        score_b=math.fsum(b) / len(b),
        difference=paired_difference(a, b, images),
        right=mcnemar([s >= RIGHT for s in a], [s >= RIGHT for s in b]) if not graded else None,
        flips=_flips(pairs),
    )


def differing_settings(run_a: RunRecord, run_b: RunRecord) -> tuple[str, ...]:
    """Return what keeps two runs from one table, in words; empty where only the encoder differs."""
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
    for task in run_a.tasks:
        if task in run_b.tasks:
            a, b = run_a.tasks[task], run_b.tasks[task]
            if a.definition != b.definition or a.metric_versions != b.metric_versions:
                found.append(f"definition of {task}")
    return tuple(found)


def _scored(predictions: Sequence[Prediction], metric: str) -> dict[str, tuple[Prediction, float]]:
    scored = {}
    for prediction in predictions:
        score = prediction.scores.get(metric)
        if score is not None and math.isfinite(score):
            scored[prediction.sample_id] = (prediction, score)
    return scored


def _flips(
    pairs: Sequence[tuple[tuple[Prediction, float], tuple[Prediction, float]]],
) -> tuple[Flip, ...]:
    flips = [
        Flip(
            sample_id=a.sample_id,
            image_id=a.image_id,
            question=a.question,
            references=a.references,
            prediction_a=a.prediction,
            prediction_b=b.prediction,
            score_a=score_a,
            score_b=score_b,
        )
        for (a, score_a), (b, score_b) in pairs
        if score_a != score_b
    ]
    return tuple(sorted(flips, key=lambda f: (-abs(f.score_b - f.score_a), f.sample_id)))
