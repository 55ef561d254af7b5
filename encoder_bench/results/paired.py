"""Statistics of paired scores: one interval and p for a difference, and McNemar's table.

What belongs here: the shape in which comparisons carry a test's result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from encoder_bench.metrics.statistics import Matrix, Statistic

SWAPS = 4000
"""Of a single test; its least p is 0.00025."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A mean difference in the metric's unit, with its 95% interval and two-sided p.

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
    """Samples by who got them right, and the exact two-sided p of the discordant ones.

    Reference: McNemar 1947, Psychometrika 12; p is the exact binomial one.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    images: Sequence[str],
    *,
    seed: int = 0,
    swaps: int = SWAPS,
) -> PairedDifference:
    """Return B less A with a bootstrap interval clustered on images, and `randomisation_p`.

    Args:
        a: A's score of each sample.
        b: B's score of the same samples.
        images: each sample's image; all samples of an image are drawn, and swapped, together.
        seed: of the resampling.
        swaps: of the randomisation test.
    """
    from encoder_bench.metrics.statistics import plain_ratio

    columns_a, columns_b = _mean_columns(a), _mean_columns(b)
    return paired_measures(columns_a, columns_b, images, plain_ratio, seed=seed, swaps=swaps)


def paired_measures(
    a: Matrix,
    b: Matrix,
    images: Sequence[str],
    statistic: Statistic,
    *,
    seed: int = 0,
    swaps: int = SWAPS,
) -> PairedDifference:
    """Return B less A in any metric that is a function of column sums, with interval and p.

    Args:
        a: `(n, K)` A's row of each sample.
        b: `(n, K)` B's row of the same samples.
        images: each sample's image; all samples of an image are drawn, and swapped, together.
        statistic: of column sums, `(R, K)` to `(R,)`.
        seed: of the resampling and the swaps.
        swaps: of the randomisation test.
    """
    import numpy as np

    from encoder_bench.metrics.statistics import bootstrap_interval, swap_p

    width = a.shape[1]

    def difference(sums: Matrix) -> Matrix:
        return np.asarray(statistic(sums[:, width:]) - statistic(sums[:, :width]))

    both = np.concatenate([a, b], axis=1)
    value = float(difference(both.sum(axis=0, keepdims=True))[0])
    low, high = bootstrap_interval(both, images, difference, seed=seed) or (None, None)
    p = swap_p(a, b, images, statistic, seed=seed, swaps=swaps)
    return PairedDifference(value, low, high, p)


def _mean_columns(scores: Sequence[float]) -> Matrix:
    import numpy as np

    values = np.asarray(scores, dtype=np.float64)
    return np.stack([values, np.ones_like(values)], axis=1)


def swaps_for(tests: int) -> int:
    """Return how many swaps make p small enough to survive Holm's correction over so many tests.

    The least p of n swaps is 1 / (n + 1); corrected, it is to lie at 0.01 at most.

    >>> swaps_for(10), swaps_for(168)
    (4000, 16800)
    """
    return max(SWAPS, 100 * tests)


def randomisation_p(
    a: Sequence[float],
    b: Sequence[float],
    images: Sequence[str],
    *,
    seed: int = 0,
    swaps: int = SWAPS,
) -> float:
    """Return the two-sided p of the mean difference, A and B swapped at random image by image.

    Args:
        a: A's score of each sample.
        b: B's score of the same samples.
        images: each sample's image.
        seed: of the swaps.
        swaps: how many.
    """
    from encoder_bench.metrics.statistics import plain_ratio, swap_p

    columns_a, columns_b = _mean_columns(a), _mean_columns(b)
    return swap_p(columns_a, columns_b, images, plain_ratio, seed=seed, swaps=swaps)


def mcnemar(right_a: Sequence[bool], right_b: Sequence[bool]) -> McNemar:
    """Return McNemar's table of two runs' right answers to the same samples.

    >>> mcnemar([True, True, False, False], [True, False, True, False])
    McNemar(both=1, only_a=1, only_b=1, neither=1, p=1.0)
    """
    from scipy.stats import binomtest

    pairs = list(zip(right_a, right_b, strict=True))
    only_a = sum(a and not b for a, b in pairs)
    only_b = sum(b and not a for a, b in pairs)
    both = sum(a and b for a, b in pairs)
    discordant = only_a + only_b
    p = float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    return McNemar(both, only_a, only_b, len(pairs) - both - discordant, p)
