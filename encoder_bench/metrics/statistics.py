"""Intervals and tests for any metric that is a function of sums over samples.

Questions about one image are not independent, so whole images are resampled. A metric is a
function of column sums of a `(samples, K)` matrix (accuracy: correct and one; BLEU: matches,
totals and lengths by order), so that a resample costs one matrix product.

Reference: Efron and Tibshirani 1993, chapter 13 (percentile interval); Cameron, Gelbach and
Miller 2008 (resampling clusters); Hesterberg 2015, The American Statistician 69 (expanded
percentile interval).
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959964
"""97.5% quantile of the normal distribution."""

References = Sequence[Sequence[str]]
"""The human answers to each sample."""
Matrix = NDArray[np.float64]
Statistic = Callable[[Matrix], Matrix]
"""`(R, K)` column sums to `(R,)` values; not a number where it is not defined."""

RESAMPLES = 2000
LEVEL = 0.95
_SMALLEST_P = -15
"""Exponent of the smallest p that is distinguished from 0."""
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


def mean_percent(
    values: Sequence[float] | NDArray[np.generic], statistic: Statistic | None = None
) -> Measure:
    """Return the measure whose score is the mean of values, in percent; `ratio` by default.

    >>> mean_percent([1.0, 0.0]).score
    50.0
    """
    column = np.asarray(values, dtype=np.float64)
    return Measure(np.stack([column, np.ones_like(column)], axis=1), statistic or ratio)


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


def score_interval(
    values: Matrix, clusters: Sequence[Hashable], statistic: Statistic, *, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95% interval of a score: Wilson's of a `share`, else the bootstrap's.

    `values` are `(n, K)`, one row per sample, and `clusters` their n images.
    """
    if statistic is share:
        return share_interval(values, clusters)
    return bootstrap_interval(values, clusters, statistic, seed=seed)


def share_interval(values: Matrix, clusters: Sequence[Hashable]) -> tuple[float, float] | None:
    """Return Wilson's 95% interval of a share, in percent, on the effective number of samples.

    The bootstrap has no width where all answers are right, and too little near it. The effective
    number is the number over the design effect: the variance over clusters beside that of
    independent samples, at least 1 and at most Kish's, which it is where all samples are alike.

    A row of `values` is credit from 0 to 1, and 1; or 0 and 0 of a sample that does not count.
    None where fewer than two clusters count.

    Reference: Korn and Graubard 1998, Survey Methodology 24; Dean and Pagano 2015, Journal of
        Survey Statistics and Methodology 3 (Wilson's interval of clustered samples).

    >>> low, high = share_interval(np.ones((4, 2)), range(4))
    >>> round(low), round(high)
    (28, 100)
    """
    from scipy.special import stdtrit

    sums = cluster_sums(values, clusters)
    sums = sums[sums[:, 1] > 0]
    count = len(sums)
    if count < 2:
        return None
    credit, samples = sums.sum(axis=0)
    rate = credit / samples
    kish = float((sums[:, 1] ** 2).sum() / samples)
    independent = rate * (1 - rate) / samples
    residuals = sums[:, 0] - rate * sums[:, 1]
    clustered = float((residuals**2).sum()) / samples**2 * count / (count - 1)
    effect = min(max(clustered / independent, 1.0), kish) if independent > 0 else kish
    effective = samples / effect
    squared = float(stdtrit(count - 1, (1 + LEVEL) / 2)) ** 2 / effective
    centre = rate + squared / 2
    half = math.sqrt(max(0.0, squared * (rate * (1 - rate) + squared / 4)))
    low, high = ((centre + sign * half) / (1 + squared) for sign in (-1, 1))
    return 100 * max(0.0, float(low)), 100 * min(1.0, float(high))


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
    and the unbiased variance is; plain percentiles are too narrow where clusters are few. None
    where there are fewer than two clusters or the statistic is never defined.

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


@dataclass(frozen=True, slots=True)
class Variance:
    """The variance of a score, or of a difference, that is averaged over seeds.

    Attributes:
        image: from which images were drawn; more seeds do not lessen it.
        image_df: its degrees of freedom.
        seed: from which seeds were drawn; it falls with their number.
        seed_df: its degrees of freedom; 0 where a single seed leaves it unknown.
    """

    image: float
    image_df: float
    seed: float = 0.0
    seed_df: int = 0

    @property
    def seed_share(self) -> float | None:
        """Share of the variance that more seeds would lessen; None where it is not known."""
        whole = self.image + self.seed
        return None if not self.seed_df else self.seed / whole if whole else 0.0

    def half_width(self, p: float = 1 - LEVEL) -> float:
        """Return the half-width of the interval of level 1 - p: sqrt(t^2 image + t^2 seed).

        Each part has the quantile of its own degrees of freedom, which holds the level however the
        parts compare; one quantile for both (Welch and Satterthwaite) does not in its tails, where
        corrections for many tests look.

        Reference: Cochran 1964, Biometrics 20.
        """
        from scipy.special import stdtrit

        parts = ((self.image, min(self.image_df, 1e9)), (self.seed, self.seed_df))
        return math.sqrt(sum(v * float(stdtrit(df, p / 2)) ** 2 for v, df in parts if v))

    def p(self, value: float) -> float:
        """Return the two-sided p of a value: the p whose interval just reaches 0.

        >>> round(Variance(1.0, 1e9).p(1.959964), 4)
        0.05
        """
        from scipy.optimize import brentq

        def beyond(exponent: float) -> float:
            return self.half_width(10.0**exponent) - abs(value)

        if beyond(_SMALLEST_P) < 0:
            return 10.0**_SMALLEST_P
        if beyond(0.0) >= 0:  # no difference, or one within the rounding of the quantile
            return 1.0
        return float(10.0 ** brentq(beyond, _SMALLEST_P, 0.0))


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference B − A in the metric's unit, with its 95% interval and two-sided p.

    `low` and `high` are None where all samples are on one image. `seed_share` is the share of the
    variance that comes from seeds; None where one seed leaves it unknown, so that interval and p
    are about the images alone.
    """

    value: float
    low: float | None
    high: float | None
    p: float
    seed_share: float | None = None

    def interval(self, digits: int) -> str:
        """Return `[-1.0, +2.0]`, or `n/a`."""
        if self.low is None or self.high is None:
            return "n/a"
        return f"[{self.low:+.{digits}f}, {self.high:+.{digits}f}]"


def leave_one_out(
    values: Matrix, clusters: Sequence[Hashable], statistic: Statistic
) -> NDArray[np.float64]:
    """Return `(C, S)` values of a statistic of `(S, n, K)` rows by seed, one cluster left out."""
    beside = np.concatenate(list(values), axis=1)
    seeds = np.split(cluster_sums(beside, clusters), len(values), axis=1)
    return np.stack([statistic(sums.sum(axis=0) - sums) for sums in seeds], axis=1)


def jackknife(left_out: Matrix) -> NDArray[np.float64]:
    """Return the variances of statistics from `(C, ...)` values, each without one cluster.

    Reference: MacKinnon, Nielsen and Webb 2023, Journal of Applied Econometrics 38 (CV3J).
    """
    return np.asarray((len(left_out) - 1) * left_out.var(axis=0))


def ratio(sums: Matrix) -> Matrix:
    """Return column 0 over column 1, in percent: accuracy, precision, F1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(100.0 * sums[:, 0] / sums[:, 1])


def share(sums: Matrix) -> Matrix:
    """Return `ratio` of what lies between none and all: right answers, of those that count."""
    return ratio(sums)


def plain_ratio(sums: Matrix) -> Matrix:
    """Return column 0 over column 1 as it is: mean absolute error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[:, 0] / sums[:, 1])


def holm(p_values: Sequence[float], *, unseen: int = 0) -> list[float]:
    """Return p values corrected by Holm's method for being several, in the order given.

    So many `unseen` tests count besides. Where rows are compared with the best, which the same data
    chose, they are the pairs without it (`other_pairs`): any of them might have been the best.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03], unseen=other_pairs(4))]
    [0.06, 0.16, 0.15]
    """
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    every = [*p_values, *[1.0] * unseen]
    return [float(p) for p in multipletests(every, method="holm")[1][: len(p_values)]]


def other_pairs(rows: int) -> int:
    """Return how many pairs of rows are without the best one."""
    return max(0, (rows - 1) * (rows - 2) // 2)


def spearman_interval(correlation: float, pairs: int) -> tuple[float, float]:
    """Return the 95% interval of Spearman's rank correlation over at least 4 pairs.

    Through Fisher's z, with variance (1 + r^2 / 2) / (n - 3). A perfect order, whose z is infinite,
    is taken as that with two neighbours exchanged, and its interval ends at 1.

    Reference: Bonett and Wright 2000, Psychometrika 65, equation 4.

    >>> [round(end, 2) for end in spearman_interval(0.8, 10)]
    [0.24, 0.96]
    """
    error = math.sqrt((1 + correlation**2 / 2) / (pairs - 3))
    return _through_z(correlation, 1 - 12 / (pairs * (pairs**2 - 1)), error)


def kendall_interval(correlation: float, pairs: int) -> tuple[float, float]:
    """Return the 95% interval of Kendall's tau over at least 5 pairs, as `spearman_interval`.

    Reference: Fieller, Hartley and Pearson 1957, Biometrika 44: variance 0.437 / (n - 4).
    """
    return _through_z(correlation, 1 - 4 / (pairs * (pairs - 1)), math.sqrt(0.437 / (pairs - 4)))


def _through_z(correlation: float, largest: float, error: float) -> tuple[float, float]:
    """Return an interval; `largest` is the largest correlation of an order that is not perfect."""
    z = math.atanh(max(-largest, min(largest, correlation)))
    low, high = math.tanh(z - Z95 * error), math.tanh(z + Z95 * error)
    return -1.0 if correlation < -largest else low, 1.0 if correlation > largest else high
