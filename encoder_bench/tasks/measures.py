"""What a task runner hands over: for each metric, numbers a sample and how they make a score.

What belongs here: the shape between runners and scores. Adding up, intervals and n/a happen once,
for all tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from encoder_bench.base.record import Score
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import Measure, find_metric
from encoder_bench.metrics.statistics import bootstrap_interval


@dataclass(frozen=True, slots=True)
class Measured:
    """All metrics of one set of predictions, and what each prediction was read as.

    Attributes:
        measures: by metric name.
        parsed: what each answer was read as, None where it could not be parsed.
        breakdowns: names of facets by which metrics are broken down.
        every_metric: whether all metrics are broken down, not only the primary one.
    """

    measures: dict[str, Measure]
    parsed: list[str | None]
    breakdowns: tuple[str, ...] = field(default=())
    every_metric: bool = False


@dataclass(frozen=True, slots=True)
class PredictionSets:
    """What is about to be measured of one task.

    Attributes:
        samples: the task's.
        predictions: sets of answers (the model's, each blind control's), each with one a sample.
        metrics: names of the recipe's metrics.
    """

    samples: Sequence[Sample]
    predictions: Sequence[Sequence[str]]
    metrics: Sequence[str]


def measure_all(
    samples: Sequence[Sample],
    predictions: Sequence[str],
    metrics: Sequence[str],
    corpus: Sequence[Sample] | None = None,
) -> dict[str, Measure]:
    """Return the named metrics of one prediction per sample."""
    references = [sample.references for sample in samples]
    whole = None if corpus is None else [sample.references for sample in corpus]
    return {name: find_metric(name).measure(predictions, references, whole) for name in metrics}


def score_of(measure: Measure, samples: Sequence[Sample], *, seed: int) -> Score:
    """Return a measure's score with its interval clustered on images."""
    images = [sample.image_id for sample in samples]
    count = len(set(images))
    if measure.reason is not None:
        return Score(value=None, samples=len(samples), images=count, reason=measure.reason)
    value = measure.score
    if value is None:
        reason = "not defined on these answers (division by zero)"
        return Score(value=None, samples=len(samples), images=count, reason=reason)
    interval = bootstrap_interval(measure.values, images, measure.statistic, seed=seed)
    low, high = interval if interval is not None else (None, None)
    return Score(value=value, low=low, high=high, samples=len(samples), images=count)


def broken_down(
    measure: Measure, samples: Sequence[Sample], facets: Sequence[str], *, seed: int
) -> dict[str, dict[str, Score]]:
    """Return a measure's scores by facet and facet value, commonest values first."""
    found: dict[str, dict[str, Score]] = {}
    if measure.reason is not None:
        return found
    for facet in facets:
        rows: dict[str, list[int]] = {}
        for index, sample in enumerate(samples):
            if facet in sample.facets:
                rows.setdefault(str(sample.facets[facet]), []).append(index)
        found[facet] = {
            value: score_of(
                Measure(measure.values[indices], measure.statistic),
                [samples[index] for index in indices],
                seed=seed,
            )
            for value, indices in sorted(rows.items(), key=lambda item: -len(item[1]))
        }
    return {facet: scores for facet, scores in found.items() if scores}
