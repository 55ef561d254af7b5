"""What the report shows of each table: charts, rows from the best, and samples with answers."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from encoder_bench.base.errors import RecordError
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.record import RunRecord
from encoder_bench.metrics.metric import recorded_metric
from encoder_bench.results import score
from encoder_bench.results.compare import RIGHT
from encoder_bench.results.contrasts import lost_predictions, over_twins, usual_ties
from encoder_bench.results.grouping import TableRow
from encoder_bench.results.report import charts
from encoder_bench.results.report.charts import Point
from encoder_bench.results.score import AVERAGE, EXTRA_COLUMNS, ExtraColumn
from encoder_bench.results.table import Table, build_tables
from encoder_bench.results.thumbnails import data_uri
from encoder_bench.tasks.predictions import (
    Prediction,
    has_predictions,
    predictions_path,
    read_predictions,
)

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
    first, shown_first = next(iter(points.items()), (AVERAGE, []))
    sign = 1.0 if _least_is_best(table, first) else -1.0
    best = sorted(shown_first, key=lambda point: sign * point.value)
    order = list(dict.fromkeys([*(point.label for point in best), *series]))
    rows = sorted(table.group.rows, key=lambda row: (order.index(row.label), row.joint))
    costs, no_cost = _costs(table, series)
    curves = [
        (Point(row.name, series[row.label], row.joint, 0.0), loss_curve(row.records[0]))
        for row in rows
    ]
    made: dict[str, Iterable[alt.LayerChart | None]] = {
        "scores": (charts.score_chart(c, p, order, _blind(table, c)) for c, p in points.items()),
        "changes": (charts.change_chart(c, p) for c, p in points.items()),
        "costs": costs,
        "errors": _errors(rows, series),
        "training": [charts.curve_chart("Training loss, nats per token, running mean", curves)],
    }
    shown = {name: tuple(c for c in each if c is not None) for name, each in made.items()}
    return Chapter(table, tuple(rows), shown, tuple(no_cost))


def _points(
    table: Table, column: str, series: dict[str, int], cost: ExtraColumn | None = None
) -> list[Point]:
    """Return a point per encoder and mode that has a score, and a cost where one is asked for."""
    found, limits = [], score.bounds(table.group.records, column)
    for row in table.rows:
        cell, at = row.cells[column], row.extra(cost) if cost else None
        if row.runs and cell.value is not None and (cost is None or at is not None):
            look = (row.label, series[row.label], row.runs.joint)
            found.append(Point(*look, cell.value, cell.half_width, at, bounds=limits))
    return found


def _blind(table: Table, column: str) -> float | None:
    values = [row.cells[column].value for row in table.rows if row.runs is None]
    known = [value for value in values if value is not None]
    best = min if _least_is_best(table, column) else max
    return best(known, default=None)


def _least_is_best(table: Table, column: str) -> bool:
    return score.higher_is_better(table.group.records, column) is False


def _costs(table: Table, series: dict[str, int]) -> tuple[list[alt.LayerChart], list[str]]:
    """Return the charts of score against cost, and why one of them is missing.

    The score is Avg, or each of the table's own where no row has all that Avg is the mean of.
    """
    shown, reasons = [], []
    columns = [AVERAGE] if _points(table, AVERAGE, series) else table.columns[:-1]
    for (axis, extra), column in itertools.product(_COSTS.items(), columns):
        points = _points(table, column, series, EXTRA_COLUMNS[extra])
        title = charts.cost_title(column, axis)
        chart = charts.cost_chart(column, axis, points, lower=_least_is_best(table, column))
        if chart is not None:
            shown.append(chart)
        elif len(points) < 2:
            rows = len(table.group.rows)
            reasons.append(f"{title}: {len(points)} of {rows} rows have both; a chart needs two.")
        else:
            reasons.append(f"{title}: no chart, since all rows cost about {points[0].at:,.3g}.")
    return shown, reasons


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
        values = sorted(largest, key=_natural)
        counted = facet == "answer" and scores.definition.get("runner") == "counting"
        name = "count" if counted else facet.replace("_", " ")
        headings = {value: f"{value}\nn = {counts[value]:,}" for value in values}
        yield charts.error_chart(f"{scores.column} by {name}", points, headings)


def _natural(value: str) -> tuple[bool, int, str]:
    """Return a key that sorts "1-9 objects" before "10-19 objects", and words after numbers."""
    digits = re.match(r"\d*", value)
    number = digits[0] if digits else ""
    return not number, int(number or 0), value


def _facet_points(row: TableRow, series: dict[str, int], task: str, facet: str) -> Iterator[Point]:
    breakdowns = [
        record.tasks[task].breakdown.get(facet, {}) if task in record.tasks else {}
        for record in row.records
    ]
    for value in breakdowns[0]:
        if all(value in breakdown for breakdown in breakdowns):
            mean = score.over_seeds([score.from_score(each[value]) for each in breakdowns])
            if mean.value is not None:
                look = (row.label, series[row.label], row.joint)
                yield Point(*look, mean.value, mean.half_width, value, mean.samples)


def browse(
    results: Path, chapters: Sequence[Chapter], *, limit: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return, for each table, its runs and at most `limit` samples per task with their answers.

    Samples are chosen by a hash of their id, so that every report shows the same ones.

    Returns:
        A JSON list (one entry per table: `heading`, `runs`, `second`, the best run of another
        encoder than the first, else of its other mode, `tasks` -> samples, `right` -> from which
        score on the task's answers are right, None for graded ones), and why some predictions are
        not shown.
    """
    tables: list[dict[str, Any]] = []
    problems = _missing(results, [run for c in chapters for row in c.rows for run in row.records])
    for chapter in chapters:
        runs = [(row, record) for row in chapter.rows for record in row.records]
        labels = [row.label for row, _ in runs]
        records = [record for _, record in runs]
        modes = [row.joint for row, _ in runs]
        other = next((n for n, joint in enumerate(modes) if joint != modes[0]), 0)
        entry: dict[str, Any] = {
            "heading": chapter.table.heading,
            "runs": [f"{row.name}, seed {record.seed}" for row, record in runs],
            "second": next((n for n, label in enumerate(labels) if label != labels[0]), other),
            "right": {},
            "tasks": {},
        }
        for task in dict.fromkeys(name for record in records for name in record.tasks):
            answers = [_answers(results, record, task, problems) for record in records]
            samples = _samples(answers, records, task, limit)
            if samples:
                entry["tasks"][task] = samples
                primary = next(r.tasks[task].primary for r in records if task in r.tasks)
                entry["right"][task] = None if recorded_metric(primary).graded else RIGHT
        tables.append(entry)
    return tables, problems


def thumbnails(
    tables: Sequence[dict[str, Any]], images: Mapping[str, Path], *, budget_bytes: int
) -> dict[str, str]:
    """Return image id -> data URI for the images of `browse`, until the budget is spent.

    An id without a file, or with an unreadable one, has no picture.
    """
    shown: dict[str, str] = {}
    samples = (s for entry in tables for task in entry["tasks"].values() for s in task)
    for image_id in dict.fromkeys(sample["image"] for sample in samples):
        uri = data_uri(images[image_id]) if image_id in images else None
        budget_bytes -= len(uri or "")
        if budget_bytes < 0:
            break
        if uri:
            shown[image_id] = uri
    return shown


def _missing(results: Path, records: Sequence[RunRecord]) -> list[str]:
    """Return one line about the predictions that are not there, however many, or none."""
    lost, where = lost_predictions(results, records), results / "predictions"
    files = sum(len(run.tasks) for run in records)
    return [
        f"{len(lost)} of {files} files are not in {where}, as {path.relative_to(where)}"
        for path in lost[:1]
    ]


def _answers(
    results: Path, record: RunRecord, task: str, problems: list[str]
) -> dict[str, Prediction]:
    if task not in record.tasks or not has_predictions(predictions_path(results, record, task)):
        return {}
    try:
        return {each.sample_id: each for each in read_predictions(results, record, task)}
    except RecordError as error:
        problems.append(str(error))
        return {}


def _samples(
    answers: Sequence[dict[str, Prediction]], records: Sequence[RunRecord], task: str, limit: int
) -> list[dict[str, Any]]:
    known = {key: found[key] for found in reversed(answers) for key in found}
    metrics = [record.tasks[task].primary if task in record.tasks else "" for record in records]
    return [
        {
            "id": key,
            "image": str(known[key].image_id),
            "question": known[key].question,
            "references": list(known[key].references),
            "answers": [
                _answer(found.get(key), metric)
                for found, metric in zip(answers, metrics, strict=True)
            ],
        }
        for key in sorted(sorted(known, key=hash_text)[:limit])
    ]


def _answer(prediction: Prediction | None, primary: str) -> dict[str, Any] | None:
    if prediction is None:
        return None
    own = prediction.scores.get(primary)
    return {
        "text": prediction.prediction,
        "score": None if own is None else round(own, 4),
        "unparsed": prediction.outcome == "unparsable",
    }
