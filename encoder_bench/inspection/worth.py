"""What scores without a trained LLM are worth as a forecast of those with one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from encoder_bench.base.errors import DataError
from encoder_bench.base.record import RunRecord
from encoder_bench.inspection.predict import PREDICTORS, Forecast
from encoder_bench.metrics.statistics import spearman_interval
from encoder_bench.results.table import build_tables

_MIN_ENCODERS = 4


@dataclass(frozen=True, slots=True)
class Worth:
    """How well a predictor's order is the order of a trained score, over encoders.

    Attributes:
        encoders: how many have both.
        correlation: Spearman's rank correlation, positive where the predictor is right.
        low: of the 95% interval.
        without_one: the smallest and the largest correlation when one encoder is left out.
    """

    predictor: str
    column: str
    encoders: int
    correlation: float
    low: float
    high: float
    without_one: tuple[float, float]

    @property
    def established(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def worth(
    forecasts: Sequence[Forecast], records: Sequence[RunRecord], *, joint: bool
) -> tuple[list[Worth], str]:
    """Return what predictors are worth on trained results, and the heading of their table.

    The table is the one with the most of the forecast encoders in that mode, the newest of those.

    Raises:
        DataError: no table has four of them.
    """
    names = {each.encoder for each in forecasts}

    def rows(table: Any) -> dict[str, Any]:
        return {
            row.runs.records[0].encoder.name: row
            for row in table.rows
            if row.runs is not None and row.joint == joint
        }

    tables = build_tables(records)
    best = max(tables, key=lambda table: len(names & rows(table).keys()), default=None)
    trained = rows(best) if best is not None else {}
    if best is None or len(names & trained.keys()) < _MIN_ENCODERS:
        mode = "joint" if joint else "frozen"
        raise DataError(
            f"{len(names & trained.keys())} of these encoders have trained {mode} results in one "
            f"table; a rank correlation needs {_MIN_ENCODERS}: run or name more (--results, sweep)"
        )
    found = []
    for predictor, higher_is_better in PREDICTORS.items():
        for column in best.columns:
            pairs = [
                (each.scores[predictor], value)
                for each in forecasts
                if predictor in each.scores and each.encoder in trained
                for value in [trained[each.encoder].cells[column].value]
                if value is not None
            ]
            if len(pairs) >= _MIN_ENCODERS:
                sign = 1.0 if higher_is_better else -1.0
                found.append(_worth(predictor, column, sign * np.asarray(pairs)[:, 0], pairs))
    return found, best.heading


def _worth(name: str, column: str, early: Any, pairs: Sequence[tuple[float, float]]) -> Worth:
    late = np.asarray(pairs)[:, 1]
    kept = [np.delete(np.arange(len(late)), index) for index in range(len(late))]
    others = [spearman(early[index], late[index]) for index in kept]
    value = spearman(early, late)
    low, high = spearman_interval(value, len(late))
    return Worth(name, column, len(late), value, low, high, (min(others), max(others)))


def spearman(one: Any, other: Any) -> float:
    """Return Spearman's rank correlation; 0 where one of them is constant.

    >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])
    0.8
    """
    from scipy.stats import spearmanr

    if len(set(one)) < 2 or len(set(other)) < 2:
        return 0.0
    return round(float(spearmanr(one, other).statistic), 12)
