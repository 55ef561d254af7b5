"""Intervals: a bootstrap over images, for any metric that is a function of sums over samples.

What belongs here: resampling. What is summed is each metric's business.

Questions about one image are not independent, so whole images are resampled. A metric is a
function of column sums of a `(samples, K)` matrix (accuracy: correct and one; BLEU: matches,
totals and lengths by order), so that a resample costs one matrix product.

Reference: Efron and Tibshirani 1993, chapter 13 (percentile interval); Cameron, Gelbach and
Miller 2008 (resampling clusters); Hesterberg 2015, The American Statistician 69 (expanded
percentile interval).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Statistic = Callable[[Matrix], Matrix]
"""`(R, K)` column sums to `(R,)` values; not a number where it is not defined."""

RESAMPLES = 2000
LEVEL = 0.95
_CHUNK = 256
_FEW = 0.05
"""Share of different rows below which drawing kinds of row is quicker than drawing rows."""


def cluster_sums(values: Matrix, clusters: Sequence[Hashable]) -> Matrix:
    """Return the `(C, K)` sums of `(n, K)` rows by cluster, in order of first appearance."""
    index: dict[Hashable, int] = {}
    labels = np.fromiter((index.setdefault(c, len(index)) for c in clusters), dtype=np.int64)
    sums = np.zeros((len(index), values.shape[1]))
    np.add.at(sums, labels, values)
    return sums


def bootstrap_interval(
    values: Matrix,
    clusters: Sequence[Hashable],
    statistic: Statistic,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float] | None:
    """Return the 95% interval of a statistic, clusters resampled with replacement.

    The percentiles are those of a normal interval that is as much wider as one with Student's t
    and the unbiased variance is; plain percentiles are too narrow where clusters are few.

    Args:
        values: `(n, K)` one row a sample.
        clusters: n labels (image ids).
        statistic: of column sums.
        seed: of the resampling.
        resamples: how many.

    Returns:
        (low, high), or None where there are fewer than two clusters or it is never defined.

    >>> values = np.array([[1.0, 1.0], [0.0, 1.0]] * 50)
    >>> low, high = bootstrap_interval(values, range(100), lambda s: s[:, 0] / s[:, 1])
    >>> 0.38 < low < 0.44 and 0.56 < high < 0.62
    True
    """
    sums = cluster_sums(values, clusters)
    count = len(sums)
    if count < 2:
        return None
    drawn = np.asarray(statistic(_resampled(sums, np.random.default_rng(seed), resamples)))
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    tail = expanded_tail(count)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def expanded_tail(clusters: int) -> float:
    """Return the share of resamples that an interval leaves out on each side.

    >>> [round(expanded_tail(n), 4) for n in (10, 100, 10_000)]
    [0.0086, 0.0231, 0.025]
    """
    from scipy.special import ndtr, stdtrit

    quantile = float(stdtrit(clusters - 1, (1 + LEVEL) / 2))
    return float(ndtr(-quantile * np.sqrt(clusters / (clusters - 1))))


def _resampled(sums: Matrix, rng: np.random.Generator, resamples: int) -> Matrix:
    """Return `(R, K)` column sums of clusters drawn with replacement.

    Clusters with the same sums are one kind, and how often each kind is drawn is multinomial: the
    same distribution, for accuracies a hundred times as fast.
    """
    count = len(sums)
    kinds, numbers = np.unique(sums, axis=0, return_counts=True)
    found = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        if len(kinds) <= _FEW * count:
            weights = rng.multinomial(count, numbers / count, size=size)
            found.append(weights.astype(np.float64) @ kinds)
            continue
        chosen = rng.integers(0, count, size=(size, count))
        chosen += np.arange(size)[:, None] * count
        weights = np.bincount(chosen.ravel(), minlength=size * count).reshape(size, count)
        found.append(weights.astype(np.float64) @ sums)
    return np.concatenate(found)


@dataclass(frozen=True, slots=True)
class SeedVariance:
    """Where the uncertainty of a mean over seeds comes from, as variances of that mean.

    Attributes:
        sampling: from which images are asked about; all seeds share them, so that more seeds do
            not lessen it.
        seed: from which seed was drawn; it falls with the number of seeds.
        seeds: how many.
    """

    sampling: float
    seed: float
    seeds: int

    @property
    def seed_share(self) -> float:
        """Share of the whole variance that more seeds would lessen; 0 where there is none."""
        whole = self.sampling + self.seed
        return self.seed / whole if whole else 0.0


def split_variance(values: Sequence[float], half_widths: Sequence[float]) -> SeedVariance:
    """Return the variance of a mean over seeds, split into sampling and seed.

    Args:
        values: a score a seed.
        half_widths: of their 95% intervals over images.

    >>> round(split_variance([50.0, 52.0], [1.96, 1.96]).seed_share, 3)
    0.5
    """
    from scipy.special import ndtri

    normal = float(ndtri((1 + LEVEL) / 2))
    sampling = float(np.mean((np.asarray(half_widths) / normal) ** 2)) if half_widths else 0.0
    count = len(values)
    seed = float(np.var(values, ddof=1)) / count if count > 1 else 0.0
    return SeedVariance(round(sampling, 12), round(seed, 12), count)


def ratio(sums: Matrix) -> Matrix:
    """Return column 0 over column 1, in percent: accuracy, precision, F1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(100.0 * sums[:, 0] / sums[:, 1])


def plain_ratio(sums: Matrix) -> Matrix:
    """Return column 0 over column 1 as it is: mean absolute error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[:, 0] / sums[:, 1])
