"""What the report shows: charts and tables, ready for the template, one chapter a table.

What belongs here: choosing numbers from records. Drawing is the business of `charts.py`, sample
pages that of `samples.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from encoder_bench.base.record import RunRecord
from encoder_bench.results.cells import from_score, over_seeds
from encoder_bench.results.columns import (
    AVERAGE,
    ENCODER,
    JOINT,
    KIND,
    device_hours,
)
from encoder_bench.results.contrasts import usual_ties
from encoder_bench.results.grouping import TableGroup, TableRow
from encoder_bench.results.page import Page, table_page
from encoder_bench.results.report.charts import (
    Costed,
    Point,
    Series,
    bar_chart,
    curve_chart,
    interval_chart,
    pareto_chart,
    slope_chart,
)
from encoder_bench.results.table import build_tables, to_frame

TABLE_EXTRAS = ("parameters", "gflops", "device-hours", "visual-tokens", "parse-failures")
_CATEGORIES = 12


@dataclass(frozen=True, slots=True)
class Breakdown:
    """One facet of one task as a chart."""

    title: str
    chart: str


@dataclass(frozen=True, slots=True)
class Chapter:
    """One table with everything drawn from it; a chart is None where there is nothing to draw."""

    heading: str
    page: Page
    group: TableGroup
    slopes: tuple[str, ...]
    intervals: tuple[str, ...]
    pareto: tuple[str, ...]
    no_pareto: tuple[str, ...]
    curves: str | None
    breakdowns: tuple[Breakdown, ...]


def chapters(records: Iterable[RunRecord], *, results: Path | None = None) -> list[Chapter]:
    """Return a chapter for each table that the records make, newest first.

    Args:
        records: run records.
        results: the folder with their predictions, from which ties with the best are found; None,
            or a folder without all of them, marks none.
    """
    kept = tuple(records)
    ties = None if results is None else usual_ties(results, kept)[0]
    return [
        _chapter(table.group, table_page(table), to_frame([table]), table.columns)
        for table in build_tables(kept, extra=TABLE_EXTRAS, ties=ties)
    ]


def row_name(row: TableRow) -> str:
    """Return `DINOv2, joint`."""
    return f"{row.label}, {'joint' if row.joint else 'frozen'}"


def series_index(group: TableGroup) -> dict[str, int]:
    """Return label -> colour and mark, the same in every chart of a chapter."""
    return {label: n for n, label in enumerate(dict.fromkeys(row.label for row in group.rows))}


def _chapter(group: TableGroup, page: Page, frame: pd.DataFrame, columns: Sequence[str]) -> Chapter:
    index = series_index(group)
    pareto, no_pareto = _pareto(group, frame, index)
    charted = [column for column in columns if frame[column].notna().any()]
    series = {column: _series(frame, column, index) for column in charted}
    slopes = [slope_chart(column, series[column]) for column in charted]
    intervals = [
        interval_chart(column, series[column], _best_blind(frame, column)) for column in charted
    ]
    return Chapter(
        heading=group.heading,
        page=page,
        group=group,
        slopes=tuple(chart for chart in slopes if chart),
        intervals=tuple(chart for chart in intervals if chart),
        pareto=tuple(pareto),
        no_pareto=tuple(no_pareto),
        curves=curve_chart("Training loss, nats a token, running mean", _curves(group, index)),
        breakdowns=tuple(_breakdowns(group, index)),
    )


def _series(frame: pd.DataFrame, column: str, index: dict[str, int]) -> list[Series]:
    points: dict[tuple[str, bool], Point] = {}
    for row in _encoder_rows(frame):
        point = _point(row, column)
        if point is not None:
            points[row[ENCODER], bool(row[JOINT])] = point
    return [
        Series(label, number, points.get((label, False)), points.get((label, True)))
        for label, number in index.items()
    ]


def _encoder_rows(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    return frame[frame[KIND] == "encoder"].to_dict("records")


def _point(row: dict[Any, Any], column: str) -> Point | None:
    if pd.isna(row[column]):
        return None
    width = row[f"{column} ±"]
    return Point(float(row[column]), None if pd.isna(width) else float(width))


def _best_blind(frame: pd.DataFrame, column: str) -> float | None:
    values = frame.loc[frame[KIND] == "blind", column].dropna()
    return float(values.max()) if len(values) else None


def _pareto(
    group: TableGroup, frame: pd.DataFrame, index: dict[str, int]
) -> tuple[list[str], list[str]]:
    """Return the charts of score against cost, and why one of them is not there."""
    scores = {
        (row[ENCODER], bool(row[JOINT])): _point(row, AVERAGE) for row in _encoder_rows(frame)
    }
    costs: dict[str, Callable[[TableRow], float | None]] = {
        "encoder GFLOPs an image": lambda row: row.records[0].encoder.gflops,
        "GPU-hours of training (device-hours on CPUs), each run's own hardware": _hours,
        "encoder parameters (M)": _encoder_millions,
    }
    charts, reasons = [], []
    for axis, cost in costs.items():
        points = []
        for row in group.rows:
            score = scores.get((row.label, row.joint))
            spent = cost(row)
            if score is not None and spent is not None:
                points.append(Costed(row.label, index[row.label], row.joint, spent, score))
        chart = pareto_chart(f"Avg against {axis}", axis, points)
        if chart is None:
            reasons.append(
                f"Avg against {axis}: {len(points)} of {len(group.rows)} rows have both figures; "
                "a chart needs two."
            )
        else:
            charts.append(chart)
    return charts, reasons


def _encoder_millions(row: TableRow) -> float:
    return row.records[0].encoder.parameters / 1e6


def _hours(row: TableRow) -> float | None:
    hours = [device_hours(each) for each in row.records]
    known = [value for value in hours if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(hours) else None


def _curves(
    group: TableGroup, index: dict[str, int]
) -> dict[str, tuple[int, list[tuple[float, float]]]]:
    return {
        row_name(row): (index[row.label], loss_curve(row.records[0]))
        for row in group.rows
        if loss_curve(row.records[0])
    }


def loss_curve(record: RunRecord) -> list[tuple[float, float]]:
    """Return (step, running mean of the loss) of a record's training summary.

    The mean is over a fortieth of the steps before each; empty where no losses were recorded.
    """
    losses = [float(loss) for loss in record.training.get("losses") or []]
    window = max(1, len(losses) // 40)
    points = []
    for step in range(window, len(losses) + 1):
        recent = losses[step - window : step]
        points.append((float(step), math.fsum(recent) / window))
    return points


def _breakdowns(group: TableGroup, index: dict[str, int]) -> Iterable[Breakdown]:
    facets = {
        (task, facet): None
        for record in group.records
        for task, scores in record.tasks.items()
        for facet in scores.breakdown
    }
    for task, facet in facets:
        categories = _facet_values(group, task, facet)
        values = {
            row_name(row): (
                index[row.label],
                [_facet_point(row, task, facet, category) for category in categories],
            )
            for row in group.rows
        }
        title = f"{_column(group, task)} by {_facet_name(group, task, facet)}"
        chart = bar_chart(title, categories, values)
        if chart:
            yield Breakdown(title, chart)


def _facet_name(group: TableGroup, task: str, facet: str) -> str:
    """Return a facet in words; the answer of a counting task is a count."""
    definition = next(r.tasks[task].definition for r in group.records if task in r.tasks)
    counted = facet == "answer" and definition.get("runner") == "counting"
    return "count" if counted else facet.replace("_", " ")


def _column(group: TableGroup, task: str) -> str:
    return next(record.tasks[task].column for record in group.records if task in record.tasks)


def _facet_values(group: TableGroup, task: str, facet: str) -> list[str]:
    """Return the values with the most samples, numbers in their order."""
    counts: dict[str, int] = {}
    for record in group.records:
        if task in record.tasks:
            for value, score in record.tasks[task].breakdown.get(facet, {}).items():
                counts[value] = max(counts.get(value, 0), score.samples)
    largest = sorted(counts, key=lambda value: (-counts[value], value))[:_CATEGORIES]
    return sorted(largest, key=lambda value: (not value.isdigit(), value.zfill(12), value))


def _facet_point(row: TableRow, task: str, facet: str, value: str) -> Point | None:
    scores = [
        record.tasks[task].breakdown[facet][value]
        for record in row.records
        if task in record.tasks and value in record.tasks[task].breakdown.get(facet, {})
    ]
    if len(scores) != len(row.records):
        return None
    estimate = over_seeds([from_score(score) for score in scores])
    return None if estimate.value is None else Point(estimate.value, estimate.half_width)
