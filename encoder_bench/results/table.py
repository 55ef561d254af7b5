"""The comparison table: from run records to typed rows, and to a pandas DataFrame."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from encoder_bench.base.record import RunRecord
from encoder_bench.results.cells import (
    Cell,
    average,
    from_score,
    lift,
    missing,
    over_rows,
    over_seeds,
)
from encoder_bench.results.columns import (
    AVERAGE,
    ENCODER,
    IMAGES,
    JOINT,
    KIND,
    MARKS,
    RUNS,
    SEEDS,
    SETTING,
    SUPERVISION,
    ExtraColumn,
    Source,
    extra_columns,
    higher_is_better,
    mean_if_whole,
    score_columns,
    score_sources,
)
from encoder_bench.results.grouping import TableGroup, TableRow, group_records

if TYPE_CHECKING:
    import pandas as pd

DECIMALS = 1
"""Scores are printed, and compared for best and second best, with this many decimals."""

RANDOM_WEIGHTS = "random weights"
_OF_THE_MODEL = {"no-image": "no image", "shuffled-images": "shuffled images"}
_OF_THE_DATA = {"constant": "constant answer", "majority": "majority per question"}

Sources = Sequence[Mapping[str, Source]]
"""For each record of a row: column -> where its score is."""
Ties = Mapping[tuple[str, bool, str], frozenset[str]]
"""(heading, joint, column) -> labels of the rows that tie with the best, the best included."""


@dataclass(frozen=True, slots=True)
class Row:
    """An encoder in one mode, averaged over its seeds, or a blind baseline.

    Attributes:
        label: the encoder's name in this table, or the baseline's.
        joint: the mode; None for a baseline that needs no model.
        cells: score column -> cell; `Avg` too.
        runs: the runs behind it; None for a blind baseline.
    """

    label: str
    joint: bool | None
    cells: dict[str, Cell]
    runs: TableRow | None = None

    @property
    def marks(self) -> list[str]:
        """What a reader must know of the row."""
        if self.runs is None:
            return []
        marks = [] if self.runs.pretrained else [RANDOM_WEIGHTS]
        shares = [
            f"{column} {100 * cell.seed_share:.0f}%"
            for column, cell in self.cells.items()
            if cell.seed_share is not None
        ]
        if shares:
            marks.append(f"share of the variance that comes from seeds: {', '.join(shares)}")
        if self.runs.superseded:
            marks.append(f"replaces {len(self.runs.superseded)} older run(s) of the same seed")
        return marks

    @property
    def pretraining(self) -> tuple[str, str]:
        """Supervision of the encoder's pretraining and its images; empty for a blind baseline."""
        if self.runs is None:
            return "", ""
        encoder = self.runs.records[0].encoder
        return encoder.supervision, encoder.pretraining_images if self.runs.pretrained else "none"

    def extra(self, column: ExtraColumn) -> float | None:
        """Return an optional column's number, the mean over the row's runs."""
        return column.mean(self.runs.records) if self.runs else None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that may be compared.

    Attributes:
        group: the runs.
        columns: score columns, `Avg` last.
        extras: optional columns.
        rows: frozen, then joint, each followed by its models' blind baselines; last the baselines
            that need no model.
    """

    group: TableGroup
    columns: tuple[str, ...]
    extras: tuple[ExtraColumn, ...]
    rows: tuple[Row, ...]

    @property
    def heading(self) -> str:
        """What all rows share."""
        return self.group.heading


def build_tables(
    records: Iterable[RunRecord], *, extra: Sequence[str] = (), ties: Ties | None = None
) -> list[Table]:
    """Return the comparison tables of run records, in the published table's shape, newest first.

    Records that differ in data, adapter, language model, task recipes or limit never share one.

    Args:
        records: run records, in any order.
        extra: optional columns, names of `columns.EXTRA_COLUMNS`.
        ties: what `contrasts.best_ties` returned, to mark rows not significantly worse than the
            best.

    Raises:
        UnknownNameError: an optional column that does not exist.
    """
    extras = tuple(extra_columns(extra))
    groups = group_records(records)
    columns = score_columns(record for group in groups for record in group.records)
    return [_table(group, tuple(columns), extras, ties) for group in groups]


def _table(
    group: TableGroup, columns: tuple[str, ...], extras: tuple[ExtraColumn, ...], ties: Ties | None
) -> Table:
    rows = tuple(_rows(group, columns[:-1]))
    for column in columns:
        higher = higher_is_better(group.records, column)
        for joint in (False, True):
            _rank([r for r in rows if r.runs and r.joint is joint], column, higher)
    if ties is not None:
        for row, column in itertools.product(rows, columns[:-1]):
            best = ties.get((group.heading, row.runs.joint, column), ()) if row.runs else ()
            row.cells[column] = replace(row.cells[column], tied=row.label in best)
    return Table(group, columns, extras, rows)


def _rows(group: TableGroup, columns: Sequence[str]) -> Iterator[Row]:
    rows = [(row, [score_sources(record) for record in row.records]) for row in group.rows]
    for joint in (False, True):
        mode = [(row, sources) for row, sources in rows if row.joint == joint]
        for row, sources in mode:
            yield Row(row.label, joint, _own_cells(sources, columns), row)
        for control, label in _OF_THE_MODEL.items():
            yield from _blind(label, joint, control, [sources for _, sources in mode], columns)
    for control, label in _OF_THE_DATA.items():
        yield from _blind(label, None, control, [sources for _, sources in rows], columns)


def _own_cells(sources: Sources, columns: Sequence[str]) -> dict[str, Cell]:
    cells = {}
    for column in columns:
        found = [each.get(column) for each in sources]
        own = over_seeds([
            from_score(each.scores.metrics.get(each.metric)) if each else missing("task not run")
            for each in found
        ])  # fmt: skip
        lifts = [lift(each) if each else None for each in found]
        cells[column] = replace(own, lift=mean_if_whole(lifts))
    return cells | {AVERAGE: average(cells)}


def _blind(
    label: str, joint: bool | None, control: str, rows: Sequence[Sources], columns: Sequence[str]
) -> Iterator[Row]:
    """Yield a blind baseline, the mean over rows, or nothing where no row was run with it."""
    found = {
        column: [cell for sources in rows if (cell := _control_cell(sources, control, column))]
        for column in columns
    }
    if any(found.values()):
        cells = {column: over_rows(each) for column, each in found.items()}
        yield Row(label, joint, cells | {AVERAGE: average(cells)})


def _control_cell(sources: Sources, control: str, column: str) -> Cell | None:
    """Return a row's score under a control, over its seeds; None unless every run has it."""
    cells = []
    for each in sources:
        source = each.get(column)
        scores = source.scores.controls.get(control, {}) if source else {}
        if source is None or source.metric not in scores:
            return None
        cells.append(from_score(scores[source.metric]))
    return over_seeds(cells)


def _rank(rows: Sequence[Row], column: str, higher: bool | None) -> None:
    """Mark the best and second best of one mode; there is none among fewer than two scores."""
    shown = [
        (row, round(value, DECIMALS))
        for row in rows
        if (value := row.cells[column].value) is not None
    ]
    if higher is None or len(shown) < 2:
        return
    places = sorted({value for _, value in shown}, reverse=higher)[:2]
    for row, value in shown:
        if value in places:
            rank = 1 + places.index(value)
            row.cells[column] = replace(row.cells[column], rank=rank)


def table(
    records: Iterable[RunRecord], *, extra: Sequence[str] = (), ties: Ties | None = None
) -> pd.DataFrame:
    """Return `build_tables` as one DataFrame, see `to_frame`."""
    return to_frame(build_tables(records, extra=extra, ties=ties))


def flat_rows(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Return one dictionary per row: column -> JSON value, keys in the order of columns.

    Each score column C comes with `C ±` (half of the 95% interval), `C lift` (gain over the best
    blind baseline of the same run, mean over runs), `C n`, `C images`, `C rank` (1 best, 2 second
    best in its mode) and `C reason` (why n/a), where ties were tested with `C tied`. `Marks` says
    what a reader must know, `Runs` has the run ids.
    """
    return [_flat(table, row) for table in tables for row in table.rows]


def _flat(table: Table, row: Row) -> dict[str, Any]:
    supervision, images = row.pretraining
    flat: dict[str, Any] = {
        SETTING: table.heading,
        JOINT: row.joint,
        KIND: "encoder" if row.runs else "blind",
        SUPERVISION: supervision,
        ENCODER: row.label,
        IMAGES: images,
        **{column: row.cells[column].value for column in table.columns},
        **{column.header: row.extra(column) for column in table.extras},
        SEEDS: len(row.runs.records) if row.runs else None,
        MARKS: "; ".join(row.marks),
    }
    for column in table.columns:
        cell = row.cells[column]
        flat |= {
            f"{column} ±": cell.half_width,
            f"{column} lift": cell.lift,
            f"{column} n": cell.samples or None,
            f"{column} images": cell.images or None,
            f"{column} rank": cell.rank,
            f"{column} reason": cell.reason,
        }
    flat[RUNS] = " ".join(record.run_id for record in row.runs.records) if row.runs else ""
    tied = {f"{column} tied": row.cells[column].tied for column in table.columns}
    return flat | {name: value for name, value in tied.items() if value is not None}


def to_frame(tables: Sequence[Table]) -> pd.DataFrame:
    """Return tables as one DataFrame with the columns of `flat_rows`; NaN where n/a."""
    import pandas as pd

    frame = pd.DataFrame(flat_rows(tables))
    columns = tables[0].columns if tables else ()
    types = {SEEDS: "Int64"}
    for column in columns:
        types |= {column: "float64", f"{column} ±": "float64", f"{column} lift": "float64"}
        types |= {f"{column} {name}": "Int64" for name in ("n", "images", "rank")}
    return frame.astype(types) if tables else frame
