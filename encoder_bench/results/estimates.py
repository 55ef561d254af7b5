"""One number of the table: over seeds, over tasks, against the blind controls.

What belongs here: arithmetic on recorded scores and their intervals. Intervals themselves are
computed where the samples are, by `encoder_bench.metrics.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from encoder_bench.base.record import Score, TaskScores
from encoder_bench.metrics.metric import recorded_metric

AVERAGED = ("VQA Acc", "CIDEr", "OC Acc", "MCI Acc")
"""The columns whose mean is `Avg`; SPICE is not among them, as in the published table."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the half-width of its 95% interval, or the reason why there is none.

    `samples` and `images` are counts of one run; where seeds differ in them, the smallest.
    `seed_share` is the share of the variance that comes from seeds, where there are several.
    """

    value: float | None
    half_width: float | None = None
    samples: int = 0
    images: int = 0
    reason: str | None = None
    seed_share: float | None = None


def missing(reason: str) -> Estimate:
    """Return the estimate of what was not or could not be measured."""
    return Estimate(None, reason=reason)


def from_score(score: Score) -> Estimate:
    """Return a recorded score as an estimate; the half-width is half of high less low."""
    value = score.value
    if value is None or not math.isfinite(value):
        return Estimate(
            None, None, score.samples, score.images, score.reason or "not computed; no reason given"
        )
    if score.low is None or score.high is None:
        return Estimate(value, None, score.samples, score.images, score.reason)
    half = (score.high - score.low) / 2
    return Estimate(value, half, score.samples, score.images, score.reason)


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over seeds, with an interval for a new sample of images and of seeds.

    All seeds answer the same test questions, so that averaging does not shrink the sampling
    error: the half-width is sqrt(mean of squared half-widths + (t s / sqrt k)^2), where s is the
    standard deviation between the k seeds and t the 97.5% quantile of Student's t with k - 1
    degrees of freedom. One seed keeps its own interval.

    >>> over_seeds([Estimate(50.0, 2.0), Estimate(50.0, 2.0)]).half_width
    2.0
    """
    if len(estimates) == 1:
        return estimates[0]
    lacking = next((each for each in estimates if each.value is None), None)
    if lacking is not None:
        return missing(f"not measured in every seed: {lacking.reason}")
    values = [each.value for each in estimates if each.value is not None]
    widths = [each.half_width for each in estimates if each.half_width is not None]
    mean = math.fsum(values) / len(values)
    half = share = None
    if len(widths) == len(values):
        from encoder_bench.metrics.statistics import split_variance

        share = split_variance(values, widths).seed_share
        sampling = math.fsum(width**2 for width in widths) / len(widths)
        half = math.sqrt(sampling + _seed_half_width(values, mean) ** 2)
    return Estimate(
        mean,
        half,
        min(each.samples for each in estimates),
        min(each.images for each in estimates),
        seed_share=share,
    )


def average(parts: dict[str, Estimate]) -> Estimate:
    """Return the mean of the averaged columns, n/a where one of them is.

    The tasks may share images and one model answers them all, so their errors may go together; the
    half-width is the mean of the tasks' half-widths, which holds however they do.
    """
    lacking = [name for name in AVERAGED if name not in parts or parts[name].value is None]
    if lacking:
        return missing("no " + ", no ".join(lacking))
    chosen = [parts[name] for name in AVERAGED]
    widths = [each.half_width for each in chosen if each.half_width is not None]
    return Estimate(
        math.fsum(each.value for each in chosen if each.value is not None) / len(chosen),
        math.fsum(widths) / len(widths) if len(widths) == len(chosen) else None,
    )


def lift(scores: TaskScores, metric: str) -> float | None:
    """Return a metric's score − the best of the run's own blind controls, in its unit."""
    own = scores.metrics.get(metric)
    blind = [control[metric].value for control in scores.controls.values() if metric in control]
    known = [value for value in blind if value is not None]
    if own is None or own.value is None or not known:
        return None
    lower = recorded_metric(metric).higher_is_better is False
    return own.value - (min(known) if lower else max(known))


def mean_if_whole(values: Sequence[float | None]) -> float | None:
    """Return the mean, None where one of the values is None or there is none at all."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _seed_half_width(values: Sequence[float], mean: float) -> float:
    from scipy.special import stdtrit

    count = len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return float(stdtrit(count - 1, 0.975)) * math.sqrt(variance / count)
