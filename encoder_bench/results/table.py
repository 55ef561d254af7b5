"""The comparison table: a pure function from run records to a pandas DataFrame.

What belongs here: which rows there are, what stands in their cells, which are best, and writing
the files. How a table looks in Markdown, LaTeX, HTML or a terminal is the business of
`layout.py` and of one small module a format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from encoder_bench.base.errors import RecordError
from encoder_bench.base.files import write_text
from encoder_bench.base.record import RunRecord, read_records
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
    extra_columns,
    half_width_column,
    higher_is_better,
    images_column,
    lift_column,
    rank_column,
    reason_column,
    samples_column,
    score_columns,
    tied_column,
)
from encoder_bench.results.formats.csv import to_csv
from encoder_bench.results.formats.html import to_html
from encoder_bench.results.formats.json import to_json
from encoder_bench.results.formats.latex import to_latex
from encoder_bench.results.formats.markdown import to_markdown
from encoder_bench.results.grouping import group_records
from encoder_bench.results.rows import table_rows
from encoder_bench.results.ties import Ties, best_ties, usual_ties

__all__ = ["table", "to_csv", "to_html", "to_json", "to_latex", "to_markdown", "write_tables"]

DECIMALS = 1
"""Scores are printed, and compared for best and second best, with so many decimals."""

WRITERS: dict[str, Callable[[pd.DataFrame], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "tex": to_latex,
    "html": to_html,
    "json": to_json,
}
"""Format, as files of it end -> what writes a frame of `table` in it."""

_DETAILS = (
    half_width_column,
    lift_column,
    samples_column,
    images_column,
    rank_column,
    reason_column,
)


def table(
    records: Iterable[RunRecord], *, extra: Sequence[str] = (), ties: Ties | None = None
) -> pd.DataFrame:
    """Return the comparison table of run records, in the published table's shape.

    One row is one encoder in one mode, averaged over its seeds. Rows stand in halves (`Joint
    Tuning` False, then True), halves in tables: records that differ in data, adapter, language
    model, task recipes or limit never share a `Setting`. Each half ends with its models' blind
    rows (without the image, with another image; means over the half's rows), each table with the
    blind rows that need no model (`Joint Tuning` None).

    Args:
        records: run records, in any order.
        extra: optional columns, names of `columns.EXTRA_COLUMNS`.
        ties: what `ties.best_ties` returned, to mark rows not significantly worse than the best.

    Returns:
        For each score column C, the columns C (percent; NaN where n/a), `C ±` (half of the 95%
        interval), `C lift` (the mean over runs of the score less the best of the run's own blind
        controls; NaN where there is none), `C n`, `C images`, `C rank` (1 best, 2 second best of
        the half, as printed) and `C reason` (why n/a), with `ties` also `C tied`. `Marks` tells
        random weights and superseded runs, `Runs` the run ids.

    Raises:
        UnknownNameError: an optional column that does not exist.
    """
    extras = extra_columns(extra)
    groups = group_records(records)
    columns = score_columns(record for group in groups for record in group.records)
    rows = [row for group in groups for row in table_rows(group, columns)]
    for row in rows:
        own = row.pop("_records")
        for extra_column in extras:
            row[extra_column.header] = extra_column.of(own) if own else None
    frame = pd.DataFrame(rows, columns=_frame_columns(columns, [c.header for c in extras]))
    if ties is not None:
        for column in columns:
            frame[tied_column(column)] = [
                row[KIND] == "encoder"
                and row[ENCODER] in ties.get((row[SETTING], row[HALF], column), ())
                for row in rows
            ]
    every = [record for group in groups for record in group.records]
    directions = {column: higher_is_better(every, column) for column in columns}
    return _ranked(frame, directions | {AVERAGE: True})


def write_tables(
    results: Path,
    *,
    extra: Sequence[str] = (),
    ties: bool | None = None,
) -> list[Path]:
    """Rewrite `table.md`, `.csv`, `.tex`, `.html` and `.json` in a results folder.

    Nothing but the records and the predictions that they vouch for is read, so equal records give
    equal bytes; each file is replaced in one step.

    Args:
        results: the results folder.
        extra: optional columns, names of `columns.EXTRA_COLUMNS`.
        ties: mark rows that are not significantly worse than the best; None where all predictions
            are there and the runs are not too many, see `ties.usual_ties`.

    Raises:
        RecordError: there are no records, or one is damaged; with `ties`, predictions too.
        UnknownNameError: an optional column that does not exist.
    """
    records = read_records(results)
    if not records:
        raise RecordError(f"{results}: no run records yet; make one with `encoder-bench run`")
    found = best_ties(results, records) if ties else None
    if ties is None:
        found, _ = usual_ties(results, records)
    frame = table(records, extra=extra, ties=found)
    paths = []
    for ending, writer in WRITERS.items():
        path = results / f"table.{ending}"
        write_text(path, writer(frame))
        paths.append(path)
    return paths


def _frame_columns(columns: Sequence[str], extras: Sequence[str]) -> list[str]:
    scores = [*columns, AVERAGE]
    head = [SETTING, HALF, KIND, SUPERVISION, ENCODER, IMAGES]
    details = [name(column) for column in scores for name in _DETAILS]
    return [*head, *scores, *extras, SEEDS, MARKS, *details, RUNS]


def _ranked(frame: pd.DataFrame, directions: Mapping[str, bool | None]) -> pd.DataFrame:
    """Mark the best and second best of each mode; one with a single value has neither.

    Args:
        frame: the table.
        directions: score column -> whether higher is better; None marks none.
    """
    encoders = frame[frame[KIND] == "encoder"]
    halves = [half.index for _, half in encoders.groupby([SETTING, HALF], sort=False)]
    changed: dict[str, pd.Series] = {SEEDS: frame[SEEDS].astype("Int64")}
    for column, higher in directions.items():
        values = frame[column].astype("float64")
        ranks = pd.Series(pd.NA, index=frame.index, dtype="Int64")
        for half in halves:
            shown = values.loc[half].round(DECIMALS).dropna()
            if higher is not None and len(shown) >= 2:
                rank = shown.rank(method="dense", ascending=not higher)
                ranks.update(rank[rank <= 2].astype("Int64"))
        changed |= {
            column: values,
            half_width_column(column): frame[half_width_column(column)].astype("float64"),
            lift_column(column): frame[lift_column(column)].astype("float64"),
            samples_column(column): frame[samples_column(column)].astype("Int64"),
            images_column(column): frame[images_column(column)].astype("Int64"),
            rank_column(column): ranks,
        }
    return frame.assign(**changed)
