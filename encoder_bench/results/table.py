"""The comparison table: a pure function from run records to a pandas DataFrame.

What belongs here: which rows there are, what stands in their cells, which are best, and writing
the files. How a table looks in Markdown, LaTeX, HTML or a terminal is the business of
`layout.py` and of one small module a format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from encoder_bench.atomic import write_text
from encoder_bench.errors import RecordError
from encoder_bench.results.columns import (
    AVERAGE,
    ENCODER,
    HALF,
    IMAGES,
    KIND,
    MARKS,
    RUNS,
    SEEDS,
    SETTING,
    SUPERVISION,
    Source,
    extra_columns,
    half_width_column,
    images_column,
    rank_column,
    reason_column,
    samples_column,
    score_columns,
    score_sources,
)
from encoder_bench.results.estimates import Estimate, average, from_score, missing, over_seeds
from encoder_bench.results.formats.csv import to_csv
from encoder_bench.results.formats.html import to_html
from encoder_bench.results.formats.json import to_json
from encoder_bench.results.formats.latex import to_latex
from encoder_bench.results.formats.markdown import to_markdown
from encoder_bench.results.grouping import TableGroup, TableRow, group_records
from encoder_bench.results.record import RunRecord, read_records

__all__ = ["table", "to_csv", "to_html", "to_json", "to_latex", "to_markdown", "write_tables"]

DECIMALS = 1
"""Scores are printed, and compared for best and second best, with so many decimals."""

_OF_THE_MODEL = {"no-image": "no image", "shuffled-images": "shuffled images"}
_OF_THE_DATA = {"constant": "constant answer", "majority": "majority per question"}
_WRITERS: dict[str, Callable[[pd.DataFrame], str]] = {
    "table.md": to_markdown,
    "table.csv": to_csv,
    "table.tex": to_latex,
    "table.html": to_html,
}


def table(records: Iterable[RunRecord], *, extra: Sequence[str] = ()) -> pd.DataFrame:
    """Return the comparison table of run records, in the published table's shape.

    One row is one encoder in one mode, averaged over its seeds. Rows stand in halves (`Joint
    Tuning` False, then True), halves in tables: records that differ in data, adapter, language
    model, task recipes or limit never share a `Setting`. Each half ends with its models' blind
    rows (without the image, with another image; means over the half's rows), each table with the
    blind rows that need no model (`Joint Tuning` None).

    Args:
        records: run records, in any order.
        extra: optional columns, names of `columns.EXTRA_COLUMNS`.

    Returns:
        For each score column C, the columns C (percent; NaN where n/a), `C ±` (half of the 95%
        interval), `C n`, `C images`, `C rank` (1 best, 2 second best of the half, as printed) and
        `C reason` (why n/a). `Marks` tells random weights and superseded runs, `Runs` the run ids.

    Raises:
        UnknownNameError: an optional column that does not exist.
    """
    extras = extra_columns(extra)
    groups = group_records(records)
    columns = score_columns(record for group in groups for record in group.records)
    rows = [row for group in groups for row in _group_rows(group, columns)]
    for row in rows:
        own = row.pop("_records")
        for column in extras:
            row[column.header] = column.of(own) if own else None
    frame = pd.DataFrame(rows, columns=_frame_columns(columns, [c.header for c in extras]))
    return _ranked(frame, [*columns, AVERAGE])


def write_tables(results: Path, *, extra: Sequence[str] = ()) -> list[Path]:
    """Rewrite `table.md`, `.csv`, `.tex` and `.html` in a results folder from its records.

    Nothing but the records is read, so equal records give equal bytes; each file is replaced in
    one step.

    Raises:
        RecordError: there are no records, or one is damaged.
        UnknownNameError: an optional column that does not exist.
    """
    records = read_records(results)
    if not records:
        raise RecordError(f"{results}: no run records yet; make one with `encoder-bench run`")
    frame = table(records, extra=extra)
    paths = []
    for name, writer in _WRITERS.items():
        write_text(results / name, writer(frame))
        paths.append(results / name)
    return paths


def _frame_columns(columns: Sequence[str], extras: Sequence[str]) -> list[str]:
    scores = [*columns, AVERAGE]
    head = [SETTING, HALF, KIND, SUPERVISION, ENCODER, IMAGES]
    details = [
        name(column)
        for column in scores
        for name in (half_width_column, samples_column, images_column, rank_column, reason_column)
    ]
    return [*head, *scores, *extras, SEEDS, MARKS, *details, RUNS]


def _group_rows(group: TableGroup, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for joint in (False, True):
        half = [row for row in group.rows if row.joint == joint]
        for row in half:
            yield _encoder_row(group, row, columns)
        for control, label in _OF_THE_MODEL.items():
            blind = [_control_estimates(row, control, columns) for row in half]
            yield from _blind_row(group, joint, label, blind, columns)
    for control, label in _OF_THE_DATA.items():
        blind = [_control_estimates(row, control, columns) for row in group.rows]
        yield from _blind_row(group, None, label, blind, columns)


def _encoder_row(group: TableGroup, row: TableRow, columns: Sequence[str]) -> dict[str, Any]:
    first = row.records[0]
    sources = [score_sources(record) for record in row.records]
    estimates = {
        column: over_seeds([_own_score(each.get(column)) for each in sources]) for column in columns
    }
    marks = [] if row.pretrained else ["random weights"]
    if row.superseded:
        marks.append(f"replaces {len(row.superseded)} older run(s) of the same seed")
    return {
        SETTING: group.heading,
        HALF: row.joint,
        KIND: "encoder",
        SUPERVISION: first.encoder.supervision,
        ENCODER: row.label,
        IMAGES: first.encoder.pretraining_images if row.pretrained else "none",
        SEEDS: len(row.records),
        MARKS: "; ".join(marks),
        RUNS: " ".join(record.run_id for record in row.records),
        "_records": row.records,
        **_cells(estimates),
    }


def _own_score(source: Source | None) -> Estimate:
    if source is None:
        return missing("task not run")
    score = source.scores.metrics.get(source.metric)
    return missing("metric not computed") if score is None else from_score(score)


def _control_estimates(row: TableRow, control: str, columns: Sequence[str]) -> dict[str, Estimate]:
    """Return a row's scores under one blind control; columns without it are left out."""
    found: dict[str, Estimate] = {}
    sources = [score_sources(record) for record in row.records]
    for column in columns:
        scores = [
            from_score(each[column].scores.controls[control][each[column].metric])
            for each in sources
            if column in each
            and each[column].metric in each[column].scores.controls.get(control, {})
        ]
        if len(scores) == len(sources):
            found[column] = over_seeds(scores)
    return found


def _blind_row(
    group: TableGroup,
    joint: bool | None,
    label: str,
    blind: Sequence[dict[str, Estimate]],
    columns: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Yield the mean of the rows' blind scores, or nothing where no row has any."""
    if not any(blind):
        return
    estimates = {
        column: _mean([each[column] for each in blind if column in each]) for column in columns
    }
    yield {
        SETTING: group.heading,
        HALF: joint,
        KIND: "blind",
        SUPERVISION: "",
        ENCODER: label,
        IMAGES: "",
        SEEDS: None,
        MARKS: "",
        RUNS: "",
        "_records": (),
        **_cells(estimates),
    }


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over rows; the same questions for all, so half-widths are averaged too."""
    known = [each for each in estimates if each.value is not None]
    if not known:
        return missing(estimates[0].reason or "not computed" if estimates else "control not run")
    widths = [each.half_width for each in known if each.half_width is not None]
    return Estimate(
        math.fsum(each.value for each in known if each.value is not None) / len(known),
        math.fsum(widths) / len(widths) if len(widths) == len(known) else None,
        min(each.samples for each in known),
        min(each.images for each in known),
    )


def _cells(estimates: dict[str, Estimate]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for column, estimate in {**estimates, AVERAGE: average(estimates)}.items():
        cells[column] = estimate.value
        cells[half_width_column(column)] = estimate.half_width
        cells[samples_column(column)] = estimate.samples or None
        cells[images_column(column)] = estimate.images or None
        cells[reason_column(column)] = estimate.reason if estimate.value is None else ""
    return cells


def _ranked(frame: pd.DataFrame, scores: Sequence[str]) -> pd.DataFrame:
    """Mark the best and second best of each half; a half with one value has neither."""
    for column in scores:
        frame[column] = frame[column].astype("float64")
        frame[half_width_column(column)] = frame[half_width_column(column)].astype("float64")
        for name in (samples_column(column), images_column(column)):
            frame[name] = frame[name].astype("Int64")
        frame[rank_column(column)] = pd.array([pd.NA] * len(frame), dtype="Int64")
        encoders = frame[frame[KIND] == "encoder"]
        for _, half in encoders.groupby([SETTING, HALF], sort=False):
            shown = half[column].round(DECIMALS).dropna()
            if len(shown) < 2:
                continue
            rank = shown.rank(method="dense", ascending=False)
            for index in rank.index[rank <= 2]:
                frame.loc[index, rank_column(column)] = int(rank[index])
    frame[SEEDS] = frame[SEEDS].astype("Int64")
    return frame
