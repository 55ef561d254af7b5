"""The comparison table: from run records to typed rows, and to a pandas DataFrame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from encoder_bench.base.errors import RecordError, UnknownNameError
from encoder_bench.base.record import RunRecord
from encoder_bench.results.cells import (
    AVERAGED,
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
    MEAN_RANK,
    OVER_TWIN,
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
from encoder_bench.tasks.controls import ASKS_MODEL, CONTROLS

if TYPE_CHECKING:
    import pandas as pd

    from encoder_bench.results.paired import Difference

DECIMALS = 1
"""Scores are printed, and compared for best and second best, with this many decimals."""

RANDOM_WEIGHTS = "random weights"

Sources = Sequence[Mapping[str, Source]]
"""For each record of a row: column -> where its score is."""
Ties = Mapping[tuple[str, bool, str], frozenset[str]]
"""(heading, joint, column) -> labels of the rows that tie with the best, the best included."""
Gains = Mapping[tuple[str, bool, str, str], "Difference"]
"""(heading, joint, column, label) -> a row's difference to its random twin."""


@dataclass(frozen=True, slots=True)
class Row:
    """An encoder in one mode, averaged over its seeds, or a blind baseline.

    Attributes:
        label: the encoder's name in this table, or the baseline's.
        joint: the mode; None for a baseline that needs no model.
        cells: score column -> cell; `Avg` too.
        runs: the runs behind it; None for a blind baseline.
        mean_rank: the mean of its ranks in the columns of `Avg` among the encoders of its mode;
            None where one of them lacks a score or there is one encoder.
    """

    label: str
    joint: bool | None
    cells: dict[str, Cell]
    runs: TableRow | None = None
    mean_rank: float | None = None

    @property
    def kind(self) -> str:
        """`encoder`, or one of the baselines: `random` for untrained weights, `blind`."""
        if self.runs is None:
            return "blind"
        return "encoder" if self.runs.pretrained else "random"

    @property
    def marks(self) -> list[str]:
        """What a reader must know of the row."""
        if self.runs is None:
            return []
        marks = [] if self.runs.pretrained else [RANDOM_WEIGHTS]
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
        columns: score columns of the tasks that were run, `Avg` last.
        rows: frozen, then joint, each followed by its random twins and its models' blind
            baselines; last the baselines that need no model.
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
    records: Iterable[RunRecord],
    *,
    extra: Sequence[str] = (),
    ties: Ties | None = None,
    gains: Gains | None = None,
) -> list[Table]:
    """Return the comparison tables of run records, in the published table's shape, newest first.

    Records that differ in data, adapter, language model, task recipes or limit never share one; in
    which order they come does not matter. `extra` are names of `columns.EXTRA_COLUMNS`; `ties`, of
    `contrasts.best_ties`, marks rows not significantly worse than the best; `gains`, of
    `contrasts.over_twins`, shows what pretraining adds.

    Raises:
        UnknownNameError: an optional column that does not exist.
    """
    extras = tuple(extra_columns(extra))
    return [_table(group, extras, ties, gains or {}) for group in group_records(records)]


def _table(
    group: TableGroup, extras: tuple[ExtraColumn, ...], ties: Ties | None, gains: Gains
) -> Table:
    columns = tuple(score_columns(group.records))
    rows = tuple(_rows(group, columns[:-1]))
    for column in columns:
        higher = higher_is_better(group.records, column)
        for joint in (False, True):
            _rank([r for r in rows if r.kind == "encoder" and r.joint is joint], column, higher)
    if ties is not None:
        for row, column in itertools.product(rows, columns[:-1]):
            best = ties.get((group.heading, row.runs.joint, column), ()) if row.runs else ()
            row.cells[column] = replace(row.cells[column], tied=row.label in best)
    ranks = _mean_ranks(rows, [column for column in columns if column in AVERAGED])
    rows = tuple(replace(row, mean_rank=ranks.get(number)) for number, row in enumerate(rows))
    for row, column in itertools.product(rows, columns) if gains else ():
        gain = gains.get((group.heading, row.joint is True, column, row.label))
        row.cells[column] = replace(row.cells[column], over_twin=gain if row.runs else None)
    return Table(group, columns, extras, rows)


def _rows(group: TableGroup, columns: Sequence[str]) -> Iterator[Row]:
    rows = [(row, [score_sources(record) for record in row.records]) for row in group.rows]
    for joint in (False, True):
        mode = [(row, sources) for row, sources in rows if row.joint == joint]
        for row, sources in mode:
            yield Row(row.label, joint, _own_cells(sources, columns), row)
        for name in ASKS_MODEL:
            yield from _blind(joint, name, [sources for _, sources in mode], columns)
    for name in CONTROLS:
        if name not in ASKS_MODEL:
            yield from _blind(None, name, [sources for _, sources in rows], columns)


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
    joint: bool | None, control: str, rows: Sequence[Sources], columns: Sequence[str]
) -> Iterator[Row]:
    """Yield a blind baseline, the mean over rows, or nothing where no row was run with it."""
    found = {
        column: [cell for sources in rows if (cell := _control_cell(sources, control, column))]
        for column in columns
    }
    if any(found.values()):
        cells = {column: over_rows(each) for column, each in found.items()}
        yield Row(CONTROLS[control].label, joint, cells | {AVERAGE: average(cells)})


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


def _mean_ranks(rows: Sequence[Row], columns: Sequence[str]) -> dict[int, float]:
    """Return place of a row -> mean of its ranks in columns where more is better; ties share."""
    found: dict[int, float] = {}
    for joint in (False, True):
        places = [n for n, r in enumerate(rows) if r.kind == "encoder" and r.joint is joint]
        scores = {n: [rows[n].cells[column].value for column in columns] for n in places}
        whole = {n: [v for v in own if v is not None] for n, own in scores.items()}
        if len(places) < 2 or not columns or any(len(v) < len(columns) for v in whole.values()):
            continue
        for n, own in whole.items():
            ranks = [
                sum((other[c] > value) + (other[c] == value) / 2 for other in whole.values()) + 0.5
                for c, value in enumerate(own)
            ]
            found[n] = math.fsum(ranks) / len(ranks)
    return found


def arranged(tables: Sequence[Table], *, sort: str | None, contains: str | None) -> list[Table]:
    """Return tables with each mode's encoders sorted by a column, and those that hold a word only.

    Baselines stay at their mode's end; ranks and marks stay those of the whole table. `sort` is a
    printed column (scores from the best, names from A), `contains` text of the encoder's name,
    family, supervision or mode, both in any case.

    Raises:
        UnknownNameError: no table has that column.
        RecordError: no row holds the word.
    """
    printed = (
        [ENCODER, *table.columns, MEAN_RANK, *(extra.header for extra in table.extras)]
        for table in tables
    )
    known = {name.casefold(): name for names in printed for name in names}
    if sort is not None and sort.casefold() not in known:
        raise UnknownNameError("column", sort, known.values())
    column = known[sort.casefold()] if sort is not None else None
    result = []
    for table in tables:
        kept = [row for row in table.rows if row.runs and _holds(row, row.runs, contains or "")]
        modes = {None, *(row.joint for row in kept)}
        rows = [*kept, *(row for row in table.rows if not row.runs and row.joint in modes)]
        rows.sort(key=lambda row: _sort_key(table, row, column))
        if kept:
            result.append(replace(table, rows=tuple(rows)))
    if not result:
        raise RecordError(f"--filter {contains}: no encoder of the table has it")
    return result


def _holds(row: Row, runs: TableRow, word: str) -> bool:
    encoder = runs.records[0].encoder
    facts = (row.label, encoder.name, encoder.family, encoder.supervision)
    return word.casefold() in " ".join((*facts, "joint" if row.joint else "frozen")).casefold()


def _sort_key(table: Table, row: Row, column: str | None) -> tuple[int, bool, bool, float, str]:
    mode = 2 if row.joint is None else int(row.joint)
    if column is None or row.kind != "encoder":
        return mode, row.kind != "encoder", False, 0.0, ""
    if column == ENCODER:
        return mode, False, False, 0.0, row.label.casefold()
    if column in table.columns:
        value = row.cells[column].value
        sign = 1.0 if higher_is_better(table.group.records, column) is False else -1.0
    elif column == MEAN_RANK:
        value, sign = row.mean_rank, 1.0
    else:
        extra = next((each for each in table.extras if each.header == column), None)
        value, sign = (row.extra(extra) if extra else None), -1.0
    return mode, False, value is None, sign * (value or 0.0), ""


def flat_rows(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Return one dictionary per row: column -> JSON value, keys in the order of columns.

    Each score column C comes with `C ±` (half of the 95% interval), `C lift` (gain over the best
    blind baseline of the same run, mean over runs), `C n`, `C images`, `C rank` (1 best, 2 second
    best in its mode), `C reason` (why n/a) and, over several seeds, `C seed share` (of the
    variance, how much comes from seeds); where ties were tested with `C tied`, where a random twin
    was run with `C over random twin`, its `low` and `high`. `Mean Rank` is scale-free, `Marks` says
    what a reader must know, `Runs` has the run ids.
    """
    columns = score_columns(record for table in tables for record in table.group.records)
    return [_flat(table, row, columns) for table in tables for row in table.rows]


def _flat(table: Table, row: Row, columns: Sequence[str]) -> dict[str, Any]:
    cells = {column: row.cells.get(column) or missing("task not run") for column in columns}
    supervision, images = row.pretraining
    flat: dict[str, Any] = {
        SETTING: table.heading,
        JOINT: row.joint,
        KIND: row.kind,
        SUPERVISION: supervision,
        ENCODER: row.label,
        IMAGES: images,
        **{column: cells[column].value for column in columns},
        MEAN_RANK: row.mean_rank,
        **{column.header: row.extra(column) for column in table.extras},
        SEEDS: len(row.runs.records) if row.runs else None,
        MARKS: "; ".join(row.marks),
    }
    for column, cell in cells.items():
        flat |= {
            f"{column} ±": cell.half_width,
            f"{column} lift": cell.lift,
            f"{column} seed share": cell.seed_share,
            f"{column} n": cell.samples or None,
            f"{column} images": cell.images or None,
            f"{column} rank": cell.rank,
            f"{column} reason": cell.reason,
        }
    flat[RUNS] = " ".join(record.run_id for record in row.runs.records) if row.runs else ""
    tied = {f"{column} tied": cells[column].tied for column in columns}
    for column, cell in cells.items():
        if gain := cell.over_twin:
            name = f"{column} {OVER_TWIN}"
            flat |= {name: gain.value, f"{name} low": gain.low, f"{name} high": gain.high}
    return flat | {name: value for name, value in tied.items() if value is not None}


def to_frame(tables: Sequence[Table]) -> pd.DataFrame:
    """Return tables as one DataFrame with the columns of `flat_rows`; NaN where n/a."""
    import pandas as pd

    frame = pd.DataFrame(flat_rows(tables))
    columns = score_columns(record for table in tables for record in table.group.records)
    types = {SEEDS: "Int64", MEAN_RANK: "float64"}
    for column in columns:
        types |= {column: "float64", f"{column} ±": "float64", f"{column} lift": "float64"}
        types |= {f"{column} seed share": "float64"}
        types |= {f"{column} {name}": "Int64" for name in ("n", "images", "rank")}
    return frame.astype(types) if tables else frame
