"""What the report shows of each table: its charts, and rows in the order of their scores."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import pandas as pd

from encoder_bench.base.record import RunRecord
from encoder_bench.results.cells import from_score, over_seeds
from encoder_bench.results.columns import (
    AVERAGE,
    EXTRA_COLUMNS,
    ExtraColumn,
    bounds,
    higher_is_better,
)
from encoder_bench.results.contrasts import over_twins, usual_ties
from encoder_bench.results.grouping import TableRow
from encoder_bench.results.report import charts
from encoder_bench.results.report.charts import Point
from encoder_bench.results.table import Table, build_tables

TABLE_EXTRAS = ("parameters", "gflops", "device-hours", "visual-tokens", "parse-failures")
_COSTS = {
    "encoder GFLOPs per image": "gflops",
    "training device-hours, on each run's own hardware": "device-hours",
    "encoder parameters (M)": "parameters",
}
_MAX_CATEGORIES = 12


@dataclass(frozen=True, slots=True)
class Chapter:
    """One table, its rows from the best encoder to the worst, and its charts by section.

    `no_cost` says why a chart of costs is missing.
    """

    table: Table
    rows: tuple[TableRow, ...]
    charts: dict[str, tuple[alt.LayerChart, ...]]
    no_cost: tuple[str, ...]


def chapters(records: Iterable[RunRecord], *, results: Path | None = None) -> list[Chapter]:
    """Return a chapter for each table that the records make, newest first.

    Ties with the best are found from the predictions in `results`; None, or a folder without all of
    them, marks none.
    """
    kept = tuple(records)
    ties = None if results is None else usual_ties(results, kept)[0]
    gains = None if results is None or ties is None else over_twins(results, kept)
    tables = build_tables(kept, extra=TABLE_EXTRAS, ties=ties, gains=gains)
    return [_chapter(table) for table in tables]


def _chapter(table: Table) -> Chapter:
    series = {label: n for n, label in enumerate(dict.fromkeys(r.label for r in table.group.rows))}
    columns = [AVERAGE, *table.columns[:-1]]
    points = {c: found for c in columns if (found := _points(table, c, series))}
    best = sorted(next(iter(points.values()), []), key=lambda point: -point.value)
    order = list(dict.fromkeys([*(point.label for point in best), *series]))
    rows = sorted(table.group.rows, key=lambda row: (order.index(row.label), row.joint))
    costs, no_cost = _costs(table, series)
    made: dict[str, Iterable[alt.LayerChart | None]] = {
        "scores": (charts.score_chart(c, p, order, _blind(table, c)) for c, p in points.items()),
        "changes": (charts.change_chart(c, p) for c, p in points.items()),
        "costs": costs,
        "errors": _errors(rows, series),
        "training": [_curves(rows, series)],
    }
    shown = {name: tuple(c for c in each if c is not None) for name, each in made.items()}
    return Chapter(table, tuple(rows), shown, tuple(no_cost))


def _points(
    table: Table, column: str, series: dict[str, int], cost: ExtraColumn | None = None
) -> list[Point]:
    """Return a point per encoder and mode that has a score, and a cost where one is asked for."""
    found, limits = [], bounds(table.group.records, column)
    for row in table.rows:
        cell, at = row.cells[column], row.extra(cost) if cost else None
        if row.runs and cell.value is not None and (cost is None or at is not None):
            look = (row.label, series[row.label], row.runs.joint)
            found.append(Point(*look, cell.value, cell.half_width, at, bounds=limits))
    return found


def _blind(table: Table, column: str) -> float | None:
    values = [row.cells[column].value for row in table.rows if row.runs is None]
    known = [value for value in values if value is not None]
    best = min if higher_is_better(table.group.records, column) is False else max
    return best(known, default=None)


def _costs(table: Table, series: dict[str, int]) -> tuple[list[alt.LayerChart], list[str]]:
    """Return the charts of score against cost, and why one of them is missing."""
    shown, reasons = [], []
    for axis, extra in _COSTS.items():
        points = _points(table, AVERAGE, series, EXTRA_COLUMNS[extra])
        title = f"Avg against {axis.partition(',')[0]}"
        chart = charts.cost_chart(title, axis, points)
        if chart is not None:
            shown.append(chart)
        elif len(points) < 2:
            rows = len(table.group.rows)
            reasons.append(f"{title}: {len(points)} of {rows} rows have both; a chart needs two.")
        else:
            reasons.append(f"{title}: no chart, since all rows cost about {points[0].at:,.3g}.")
    return shown, reasons


def _curves(rows: Sequence[TableRow], series: dict[str, int]) -> alt.LayerChart | None:
    curves = [
        (Point(row.name, series[row.label], row.joint, 0.0), loss_curve(row.records[0]))
        for row in rows
    ]
    return charts.curve_chart("Training loss, nats per token, running mean", curves)


def loss_curve(record: RunRecord) -> list[tuple[float, float]]:
    """Return (step, running mean of the loss) of a record's training summary.

    The mean is over a fortieth of the steps before each; empty where no losses were recorded.
    """
    losses = pd.Series(record.training.get("losses") or [], dtype="float64")
    means = losses.rolling(max(1, len(losses) // 40)).mean().dropna()
    return list(zip((means.index + 1.0).tolist(), means.tolist(), strict=True))


def _errors(rows: Sequence[TableRow], series: dict[str, int]) -> Iterator[alt.LayerChart | None]:
    """Yield a chart for each facet of each task."""
    facets = {
        (task, facet): scores
        for row in rows
        for record in row.records
        for task, scores in record.tasks.items()
        for facet in scores.breakdown
    }
    for (task, facet), scores in facets.items():
        points = [point for row in rows for point in _facet_points(row, series, task, facet)]
        counts: dict[str, int] = {}
        for point in points:
            counts[str(point.at)] = max(counts.get(str(point.at), 0), point.samples)
        largest = sorted(counts, key=lambda value: (-counts[value], value))[:_MAX_CATEGORIES]
        values = sorted(largest, key=lambda value: (not value.isdigit(), value.zfill(12), value))
        counted = facet == "answer" and scores.definition.get("runner") == "counting"
        name = "count" if counted else facet.replace("_", " ")
        headings = {value: f"{value}\nn = {counts[value]:,}" for value in values}
        yield charts.error_chart(f"{scores.column} by {name}", points, headings)


def _facet_points(row: TableRow, series: dict[str, int], task: str, facet: str) -> Iterator[Point]:
    breakdowns = [
        record.tasks[task].breakdown.get(facet, {}) if task in record.tasks else {}
        for record in row.records
    ]
    for value in breakdowns[0]:
        if all(value in breakdown for breakdown in breakdowns):
            mean = over_seeds([from_score(breakdown[value]) for breakdown in breakdowns])
            if mean.value is not None:
                look = (row.label, series[row.label], row.joint)
                yield Point(*look, mean.value, mean.half_width, value, mean.samples)
