"""Intervals: a bootstrap over images, for any metric that is a function of sums over samples.

What belongs here: resampling. What is summed is each metric's business.

Questions about one image are not independent, so whole images are resampled. A metric is a
function of column sums of a `(samples, K)` matrix (accuracy: correct and one; BLEU: matches,
totals and lengths by order), so that a resample costs one matrix product.

Reference: Efron and Tibshirani 1993, chapter 13 (percentile interval); Cameron, Gelbach and
Miller 2008 (resampling clusters).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Statistic = Callable[[Matrix], Matrix]
"""`(R, K)` column sums to `(R,)` values; not a number where it is not defined."""

RESAMPLES = 2000
LEVEL = 0.95
_CHUNK = 256


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
    """Return the 95% percentile interval of a statistic, clusters resampled with replacement.

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
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        found.append(statistic(weights @ sums))
    drawn = np.concatenate(found)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def ratio(sums: Matrix) -> Matrix:
    """Return column 0 over column 1, in percent: accuracy, precision, F1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(100.0 * sums[:, 0] / sums[:, 1])


def plain_ratio(sums: Matrix) -> Matrix:
    """Return column 0 over column 1 as it is: mean absolute error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[:, 0] / sums[:, 1])
