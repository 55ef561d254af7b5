"""Scores of a row's seeds sample by sample, and the one test of a difference between two rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoder_bench.metrics.statistics import (
    Difference,
    Statistic,
    Variance,
    cluster_sums,
    jackknife,
    leave_one_out,
    plain_ratio,
)
from encoder_bench.results.grouping import TableRow
from encoder_bench.results.score import score_sources
from encoder_bench.tasks.predictions import Prediction, read_controls


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One metric of one row, by seed and sample.

    Attributes:
        samples: ids, the same for every seed.
        images: each sample's image; the samples of one image are not independent.
        values: `(seeds, samples, K)`, whose sums over samples determine the metric.
        statistic: of column sums.
    """

    seeds: tuple[int, ...]
    samples: tuple[str, ...]
    images: tuple[str, ...]
    values: NDArray[np.float64]
    statistic: Statistic = plain_ratio

    @property
    def by_seed(self) -> NDArray[np.float64]:
        """The metric of each seed."""
        return self.statistic(self.values.sum(axis=1))

    @property
    def mean(self) -> float:
        """The mean over seeds; NaN without samples."""
        return float(self.by_seed.mean()) if self.samples else math.nan

    @property
    def by_sample(self) -> list[float]:
        """The metric of each sample alone, the mean over seeds."""
        found = [self.statistic(each) for each in self.values]
        return [float(value) for value in np.mean(found, axis=0)]

    def only(self, samples: Iterable[str]) -> Scores:
        """Return the scores of some samples, in that order."""
        place = {sample: index for index, sample in enumerate(self.samples)}
        kept = [place[sample] for sample in samples]
        return replace(
            self,
            samples=tuple(self.samples[index] for index in kept),
            images=tuple(self.images[index] for index in kept),
            values=self.values[:, kept],
        )


def sample_scores(by_seed: Mapping[int, Iterable[Prediction]], metric: str) -> Scores:
    """Return the samples' own scores in a metric, of the samples that have one in every seed."""
    images: dict[str, str] = {}
    seeds: list[dict[str, float]] = []
    for predictions in by_seed.values():
        seeds.append({})
        for each in predictions:
            score = each.scores.get(metric)
            if score is not None and math.isfinite(score):
                seeds[-1][each.sample_id] = score
                images[each.sample_id] = str(each.image_id)
    samples = [sample for sample in images if all(sample in seed for seed in seeds)]
    found = np.array([[seed[sample] for sample in samples] for seed in seeds], dtype=np.float64)
    values = np.stack([found, np.ones_like(found)], axis=2)
    kept = tuple(images[sample] for sample in samples)
    return Scores(tuple(by_seed), tuple(samples), kept, values)


def row_scores(results: Path, row: TableRow, column: str) -> dict[str | None, Scores]:
    """Return the scores of a row's own answers (under None) and of each blind baseline.

    Empty where a run of the row has no score in the column. Raises as `read_controls`.
    """
    by_seed: dict[int, dict[str | None, list[Prediction]]] = {}
    metrics: list[str] = []
    for record in row.records:
        source = score_sources(record).get(column)
        if source is None:
            return {}
        metrics.append(source.metric)
        by_seed[record.seed] = read_controls(results, record, source.task)
    first, *others = by_seed.values()
    return {
        name: sample_scores({s: found[name] for s, found in by_seed.items()}, metrics[0])
        for name in first
        if all(name in other for other in others)
    }


def shared_scores(a: Scores, b: Scores) -> tuple[Scores, Scores] | None:
    """Return both sides on the samples that both have, of the same image; None without any."""
    known = {*zip(b.samples, b.images, strict=True)}
    samples = [each[0] for each in zip(a.samples, a.images, strict=True) if each in known]
    return (a.only(samples), b.only(samples)) if samples else None


def difference(a: Scores, b: Scores) -> Difference:
    """Return B − A of two sides on the same samples, with interval and p.

    The variance has a part from images (all samples of an image are left out together) and a part
    from seeds: the variance between the seeds' differences where both sides ran the same seeds,
    else the sum of both sides' own. What differs between seeds sample by sample is in the second
    part alone. Where few images differ at all, p is at least the smallest that a sign test on as
    many can have.
    """
    value = b.mean - a.mean
    left, right = (leave_one_out(each.values, each.images, each.statistic) for each in (a, b))
    defined = np.isfinite(left).all(axis=1) & np.isfinite(right).all(axis=1)
    left, right = left[defined], right[defined]
    if len(left) < 2:
        return Difference(value, None, None, 1.0)
    whole = float(jackknife(right.mean(axis=1) - left.mean(axis=1)))
    seed, noise, seed_df = 0.0, 0.0, min(len(a.seeds), len(b.seeds)) - 1
    if seed_df:
        paired = a.seeds == b.seeds
        sides = [right - left] if paired else [left, right]
        scores = [b.by_seed - a.by_seed] if paired else [a.by_seed, b.by_seed]
        seed = float(sum(np.var(each, ddof=1) / len(each) for each in scores))
        noise = sum(_noise(each) for each in sides)
    image = max(0.0, whole - noise, _sign_variance(a, b, value))
    variance = Variance(image, len(left) - 1, seed, seed_df)
    half = variance.half_width()
    p = variance.p(value)
    return Difference(value, value - half, value + half, p, variance.seed_share)


def _noise(left_out: NDArray[np.float64]) -> float:
    """Return the part of a mean's variance that each seed draws for each image of its own."""
    single, mean = jackknife(left_out).mean(), jackknife(left_out.mean(axis=1))
    return float((single - mean) / (left_out.shape[1] - 1))


def _sign_variance(a: Scores, b: Scores, value: float) -> float:
    """Return the variance at which p is the smallest of a sign test on the images that differ."""
    from scipy.special import stdtrit

    left, right = (cluster_sums(each.values.mean(axis=0), each.images) for each in (a, b))
    changed = int((left != right).any(axis=1).sum())
    quantile = float(stdtrit(len(left) - 1, 2.0**-changed))
    return float((value / quantile) ** 2) if value and quantile else 0.0
