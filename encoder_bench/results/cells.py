"""One score of the table, and how scores are combined over seeds, rows and tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from encoder_bench.base.record import Score
from encoder_bench.metrics.metric import recorded_metric
from encoder_bench.results.columns import Source, mean_if_whole
from encoder_bench.tasks.controls import CONTROLS

if TYPE_CHECKING:
    from encoder_bench.results.paired import Difference

AVERAGED = ("VQA Acc", "CIDEr", "OC Acc", "MCI Acc")
"""The columns whose mean is `Avg`; SPICE is not among them, as in the published table."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One score of the table, in its metric's unit.

    Attributes:
        value: None where n/a.
        half_width: half of the 95% interval.
        samples: of one run; the fewest where seeds differ.
        reason: why the value is n/a.
        seed_share: share of the variance that comes from seeds, where there are several.
        lift: gain over the best blind baseline of the same run, the mean over runs.
        rank: 1 best, 2 second best in its mode, as printed.
        tied: whether it is not significantly worse than the best; None where not tested.
        over_twin: its difference to the encoder's random twin; None where there is none.
    """

    value: float | None
    half_width: float | None = None
    samples: int = 0
    images: int = 0
    reason: str = ""
    seed_share: float | None = None
    lift: float | None = None
    rank: int | None = None
    tied: bool | None = None
    over_twin: Difference | None = None


def missing(reason: str) -> Cell:
    """Return the cell of what was not or could not be measured."""
    return Cell(None, reason=reason)


def from_score(score: Score | None) -> Cell:
    """Return a recorded score as a cell."""
    if score is None:
        return missing("metric not computed")
    counts = score.samples, score.images
    if score.value is None or not math.isfinite(score.value):
        return Cell(None, None, *counts, score.reason or "not computed; no reason given")
    if score.low is None or score.high is None:
        return Cell(score.value, None, *counts)
    return Cell(score.value, (score.high - score.low) / 2, *counts)


def over_seeds(cells: Sequence[Cell]) -> Cell:
    """Return the mean over seeds, with an interval for a new sample of images and of seeds.

    All seeds answer the same test questions, so averaging does not shrink the sampling error: the
    half-width is sqrt(mean of squared half-widths + (t s / sqrt k)^2), where s is the standard
    deviation between the k seeds and t the 97.5% quantile of Student's t with k - 1 degrees of
    freedom. One seed keeps its own interval.

    >>> over_seeds([Cell(50.0, 2.0), Cell(50.0, 2.0)]).half_width
    2.0
    """
    if len(cells) == 1:
        return cells[0]
    for cell in cells:
        if cell.value is None:
            return missing(f"not measured in every seed: {cell.reason}")
    mean = _mean(cells)
    if mean.half_width is None:
        return mean
    from encoder_bench.metrics.statistics import Variance

    values = np.array([cell.value for cell in cells if cell.value is not None])
    widths = [cell.half_width for cell in cells if cell.half_width is not None]
    degrees = mean.images - 1 if mean.images > 1 else math.inf
    image = math.fsum(width**2 for width in widths) / len(widths)
    unit = Variance(1.0, degrees).half_width() ** 2
    seed = float(np.var(values, ddof=1)) / len(values)
    variance = Variance(image / unit, degrees, seed, len(values) - 1)
    return replace(mean, half_width=variance.half_width(), seed_share=variance.seed_share)


def over_rows(cells: Sequence[Cell]) -> Cell:
    """Return the mean of a blind baseline over rows.

    All rows answer the same questions, so half-widths are averaged too.
    """
    known = [cell for cell in cells if cell.value is not None]
    if known:
        return _mean(known)
    return missing(cells[0].reason if cells else "control not run")


def average(cells: Mapping[str, Cell]) -> Cell:
    """Return `Avg`, the mean of the averaged columns; n/a where one of them is.

    The tasks may share images and one model answers them all, so their errors may be correlated;
    the half-width is the mean of the tasks' half-widths, which holds for any correlation.
    """
    chosen = {name: cells.get(name, missing("")) for name in AVERAGED}
    lacking = [f"no {name}" for name, cell in chosen.items() if cell.value is None]
    if lacking:
        return Cell(None, reason=", ".join(lacking), lift=_mean_lift(chosen))
    mean = _mean(list(chosen.values()))
    return Cell(mean.value, mean.half_width, lift=_mean_lift(chosen))


def lift(source: Source) -> float | None:
    """Return by how much a score is better than the best of the run's own blind baselines."""
    metric, own = recorded_metric(source.metric), source.scores.metrics.get(source.metric)
    controls = [s for name, s in source.scores.controls.items() if CONTROLS[name].counts]
    blind = [scores[source.metric].value for scores in controls if source.metric in scores]
    if own is None or own.value is None or metric.higher_is_better is None:
        return None
    return min((metric.loss(own.value, v) for v in blind if v is not None), default=None)


def _mean_lift(cells: Mapping[str, Cell]) -> float | None:
    return mean_if_whole([cell.lift for cell in cells.values()])


def _mean(cells: Sequence[Cell]) -> Cell:
    """Return the mean of cells that all have a value, half-widths averaged."""
    return Cell(
        mean_if_whole([cell.value for cell in cells]),
        mean_if_whole([cell.half_width for cell in cells]),
        min(cell.samples for cell in cells),
        min(cell.images for cell in cells),
    )
