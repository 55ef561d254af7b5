"""Intervals and tests for any metric that is a function of sums over samples.

Questions about one image are not independent, so whole images are resampled. A metric is a
function of column sums of a `(samples, K)` matrix (accuracy: correct and one; BLEU: matches,
totals and lengths by order), so that a resample costs one matrix product.

Reference: Efron and Tibshirani 1993, chapter 13 (percentile interval); Cameron, Gelbach and
Miller 2008 (resampling clusters); Hesterberg 2015, The American Statistician 69 (expanded
percentile interval).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

References = Sequence[Sequence[str]]
"""The human answers to each sample."""
Matrix = NDArray[np.float64]
Statistic = Callable[[Matrix], Matrix]
"""`(R, K)` column sums to `(R,)` values; not a number where it is not defined."""

RESAMPLES = 2000
LEVEL = 0.95
_CHUNK_DRAWS = 1 << 20
"""Draws made at once; 8 MB of weights, which stay in the cache."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric over a set of answers.

    Attributes:
        values: `(n, K)`, one row per sample; column sums determine the score.
        statistic: of column sums.
        reason: why the metric is n/a; `values` is then empty.
    """

    values: Matrix
    statistic: Statistic
    reason: str | None = None

    @property
    def score(self) -> float | None:
        """The score of all samples together; None where it is n/a or not defined."""
        if self.reason is not None:
            return None
        value = float(self.statistic(self.values.sum(axis=0, keepdims=True))[0])
        return value if np.isfinite(value) else None

    def sample_scores(self) -> list[float | None]:
        """Return each sample's own score, None where it is not defined; none where it is n/a."""
        if not len(self.values):
            return []
        found = self.statistic(self.values)
        return [float(value) if np.isfinite(value) else None for value in found]


def mean_percent(values: Sequence[float] | NDArray[np.generic]) -> Measure:
    """Return the measure whose score is the mean of values from 0 to 1, in percent.

    >>> mean_percent([1.0, 0.0]).score
    50.0
    """
    column = np.asarray(values, dtype=np.float64)
    return Measure(np.stack([column, np.ones_like(column)], axis=1), ratio)


def unavailable(reason: str) -> Measure:
    """Return a measure that is n/a for a reason."""
    return Measure(np.zeros((0, 2)), ratio, reason)


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
        values: `(n, K)` one row per sample.
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
    if len(sums) < 2:
        return None
    drawn = np.concatenate(
        [statistic(weights @ sums) for weights in _resamples(len(sums), resamples, seed)]
    )
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return None
    tail = expanded_tail(len(sums))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def _resamples(count: int, resamples: int, seed: int) -> Iterator[Matrix]:
    """Yield `(r, count)` matrices: how often each cluster is in each of r resamples."""
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_DRAWS // count)
    small = np.uint16 if count <= 1 << 16 else np.uint32
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, count, size=(size, count), dtype=small).astype(np.int64)
        drawn += count * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * count)
        yield counts.reshape(size, count).astype(np.float64)


def expanded_tail(clusters: int) -> float:
    """Return the share of resamples that an interval leaves out on each side.

    >>> [round(expanded_tail(n), 4) for n in (10, 100, 10_000)]
    [0.0086, 0.0231, 0.025]
    """
    from scipy.special import ndtr, stdtrit

    quantile = float(stdtrit(clusters - 1, (1 + LEVEL) / 2))
    return float(ndtr(-quantile * np.sqrt(clusters / (clusters - 1))))


def swap_p(
    a: Matrix,
    b: Matrix,
    clusters: Sequence[Hashable],
    statistic: Statistic,
    *,
    seed: int = 0,
    swaps: int,
) -> float:
    """Return the two-sided p of a paired randomisation test of `statistic(b) - statistic(a)`.

    Were A and B alike, they could be swapped on any cluster; p is the share of random swaps whose
    difference is at least as large as the observed one, which is counted among them.

    Args:
        a: `(n, K)` A's row of each sample; column sums determine the metric.
        b: `(n, K)` B's row of the same samples.
        clusters: n labels (image ids).
        statistic: of column sums; a swap where it is not defined counts as extreme.
        seed: of the swaps.
        swaps: how many.

    Reference: Edgington and Onghena 2007, Randomization Tests, chapter 5.
    """
    sums_a, sums_b = cluster_sums(a, clusters), cluster_sums(b, clusters)
    total_a, total_b, change = sums_a.sum(axis=0), sums_b.sum(axis=0), sums_b - sums_a
    difference = statistic(total_b[None]) - statistic(total_a[None])
    observed = abs(float(difference[0])) * (1 - 1e-12)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_DRAWS // len(change))
    as_extreme = 0
    for start in range(0, swaps, rows):
        size = min(rows, swaps - start)
        swapped = rng.integers(0, 2, size=(size, len(change)), dtype=np.int8).astype(np.float64)
        moved = swapped @ change
        found = np.abs(statistic(total_b - moved) - statistic(total_a + moved))
        as_extreme += size - int((found < observed).sum())
    return (as_extreme + 1) / (swaps + 1)


@dataclass(frozen=True, slots=True)
class SeedVariance:
    """The variance of a mean over seeds, by where it comes from.

    Attributes:
        sampling: from the images, which all seeds share; more seeds do not lessen it.
        seed: from which seeds were drawn; it falls with their number.
        seeds: how many.
    """

    sampling: float
    seed: float
    seeds: int

    @property
    def seed_share(self) -> float:
        """Share of the variance that more seeds would lessen; 0 where there is none."""
        whole = self.sampling + self.seed
        return self.seed / whole if whole else 0.0


def split_variance(values: Sequence[float], half_widths: Sequence[float]) -> SeedVariance:
    """Return the variance of the mean of one score per seed, given their 95% half-widths.

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


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected by Holm's method for being several, in the order given.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    return [float(p) for p in multipletests(p_values, method="holm")[1]]
