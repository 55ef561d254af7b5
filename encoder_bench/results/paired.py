"""Paired statistics: two sides' scores of the same samples, their difference, and its tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from encoder_bench.metrics.statistics import (
    Matrix,
    Statistic,
    bootstrap_interval,
    plain_ratio,
    swap_p,
)
from encoder_bench.results.columns import score_sources
from encoder_bench.results.grouping import TableRow
from encoder_bench.tasks.predictions import Prediction, read_controls

SWAPS = 4000
"""Of a single test; its smallest p is 0.00025."""


@dataclass(frozen=True, slots=True)
class SampleScores:
    """Scores in the metric's unit by sample id, and each sample's image."""

    scores: Mapping[str, float]
    images: Mapping[str, str]

    @property
    def mean(self) -> float:
        """Mean over samples; NaN without any."""
        return math.fsum(self.scores.values()) / len(self.scores) if self.scores else math.nan


@dataclass(frozen=True, slots=True)
class SharedScores:
    """What two sides scored on the samples of both; `images` are the clusters."""

    samples: list[str]
    a: list[float]
    b: list[float]
    images: list[str]

    @property
    def means(self) -> tuple[float, float]:
        """Mean of A and of B."""
        return math.fsum(self.a) / len(self.a), math.fsum(self.b) / len(self.b)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A difference B − A in the metric's unit, with its 95% interval and two-sided p.

    `low` and `high` are None where all samples are on one image.
    """

    value: float
    low: float | None
    high: float | None
    p: float

    def interval(self, digits: int) -> str:
        """Return `[-1.0, +2.0]`, or `n/a`."""
        if self.low is None or self.high is None:
            return "n/a"
        return f"[{self.low:+.{digits}f}, {self.high:+.{digits}f}]"


@dataclass(frozen=True, slots=True)
class McNemar:
    """Samples by which side got them right, and the exact two-sided p of the discordant ones."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float


def sample_scores(predictions: Iterable[Prediction], metric: str) -> SampleScores:
    """Return the samples' own scores in a metric, without those that have none."""
    scores, images = {}, {}
    for prediction in predictions:
        score = prediction.scores.get(metric)
        if score is not None and math.isfinite(score):
            scores[prediction.sample_id] = score
            images[prediction.sample_id] = str(prediction.image_id)
    return SampleScores(scores, images)


def row_scores(results: Path, row: TableRow, column: str) -> dict[str | None, SampleScores]:
    """Return the sample scores of a row's own answers (under None) and of each blind baseline.

    Seeds are averaged sample by sample, over the samples that all seeds scored. Empty where a run
    of the row has no score in the column.

    Raises:
        RecordError: predictions are missing or damaged.
    """
    by_seed: list[dict[str | None, SampleScores]] = []
    for record in row.records:
        source = score_sources(record).get(column)
        if source is None:
            return {}
        controls = read_controls(results, record, source.task)
        by_seed.append({n: sample_scores(each, source.metric) for n, each in controls.items()})
    names = [name for name in by_seed[0] if all(name in seed for seed in by_seed)]
    return {name: _over_seeds([seed[name] for seed in by_seed]) for name in names}


def _over_seeds(seeds: Sequence[SampleScores]) -> SampleScores:
    shared = [sample for sample in seeds[0].scores if all(sample in s.scores for s in seeds)]
    means = {sample: math.fsum(s.scores[sample] for s in seeds) / len(seeds) for sample in shared}
    return SampleScores(means, {sample: seeds[0].images[sample] for sample in shared})


def shared_scores(a: SampleScores, b: SampleScores) -> SharedScores | None:
    """Return both sides' scores of the samples that both have, None where there are none."""
    samples = [sample for sample in a.scores if sample in b.scores]
    if not samples:
        return None
    return SharedScores(
        samples,
        [a.scores[sample] for sample in samples],
        [b.scores[sample] for sample in samples],
        [a.images[sample] for sample in samples],
    )


def paired_difference(pairs: SharedScores, swaps: int = SWAPS) -> PairedDifference:
    """Return the mean difference B − A, see `measured_difference`."""
    a, b = _mean_columns(pairs.a), _mean_columns(pairs.b)
    return measured_difference(a, b, pairs.images, plain_ratio, swaps)


def measured_difference(
    a: Matrix,
    b: Matrix,
    images: Sequence[str],
    statistic: Statistic,
    swaps: int = SWAPS,
) -> PairedDifference:
    """Return B − A in any metric that is a function of column sums, with interval and p.

    Args:
        a: `(n, K)` A's row of each sample.
        b: `(n, K)` B's row of the same samples.
        images: each sample's image; all samples of an image are drawn, and swapped, together.
        statistic: of column sums, `(R, K)` to `(R,)`.
        swaps: of the randomisation test.
    """
    width = a.shape[1]

    def difference(sums: Matrix) -> Matrix:
        return np.asarray(statistic(sums[:, width:]) - statistic(sums[:, :width]))

    both = np.concatenate([a, b], axis=1)
    value = float(difference(both.sum(axis=0, keepdims=True))[0])
    low, high = bootstrap_interval(both, images, difference) or (None, None)
    p = swap_p(a, b, images, statistic, swaps=swaps)
    return PairedDifference(value, low, high, p)


def randomisation_p(pairs: SharedScores, swaps: int = SWAPS) -> float:
    """Return the two-sided p of the mean difference, A and B swapped at random by image."""
    a, b = _mean_columns(pairs.a), _mean_columns(pairs.b)
    return swap_p(a, b, pairs.images, plain_ratio, swaps=swaps)


def _mean_columns(scores: Sequence[float]) -> Matrix:
    values = np.asarray(scores, dtype=np.float64)
    return np.stack([values, np.ones_like(values)], axis=1)


def swaps_for(tests: int) -> int:
    """Return how many swaps make p small enough to survive Holm's correction over many tests.

    The smallest p of n swaps is 1 / (n + 1); corrected, it must be at most 0.01.

    >>> swaps_for(10), swaps_for(168)
    (4000, 16800)
    """
    return max(SWAPS, 100 * tests)


def mcnemar(right_a: Sequence[bool], right_b: Sequence[bool]) -> McNemar:
    """Return McNemar's table of two sides' right answers to the same samples.

    >>> mcnemar([True, True, False, False], [True, False, True, False])
    McNemar(both=1, only_a=1, only_b=1, neither=1, p=1.0)
    """
    from statsmodels.stats import contingency_tables

    pairs = list(zip(right_a, right_b, strict=True))
    both, only_a = pairs.count((True, True)), pairs.count((True, False))
    only_b, neither = pairs.count((False, True)), pairs.count((False, False))
    test = contingency_tables.mcnemar([[both, only_a], [only_b, neither]], exact=True)
    return McNemar(both, only_a, only_b, neither, float(test.pvalue))
