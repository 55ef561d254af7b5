"""Statistics of paired scores: one interval and p for a difference, and McNemar's table.

What belongs here: the shape in which comparisons carry a test's result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A mean difference with its 95% interval and two-sided p, in the metric's unit."""

    value: float
    low: float
    high: float
    p: float


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
    a: Sequence[float], b: Sequence[float], images: Sequence[str], *, seed: int = 0
) -> PairedDifference:
    """Return B less A with a bootstrap interval clustered on images.

    Args:
        a: A's score of each sample.
        b: B's score of the same samples.
        images: each sample's image; all samples of an image are drawn together.
        seed: of the resampling.
    """
    import numpy as np

    difference = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    _, cluster = np.unique(np.asarray(images), return_inverse=True)
    sums = np.bincount(cluster, weights=difference)
    counts = np.bincount(cluster)
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(0, RESAMPLES, 500):
        weights = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=500)
        means.append((weights @ sums) / (weights @ counts))
    drawn = np.concatenate(means)
    low, high = np.quantile(drawn, [0.025, 0.975])
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(drawn) + 1))
    return PairedDifference(float(difference.mean()), float(low), float(high), p)


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
