"""The comparison table: from run records to typed rows, and to a pandas DataFrame."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from encoder_bench.base.errors import RecordError, UnknownNameError
from encoder_bench.base.record import RunRecord
from encoder_bench.metrics.statistics import Difference
from encoder_bench.results import score
from encoder_bench.results.grouping import TableGroup, TableRow, group_records
from encoder_bench.results.score import AVERAGE, AVERAGED, Cell, ExtraColumn, Source, missing
from encoder_bench.tasks.controls import ASKS_MODEL, CONTROLS

if TYPE_CHECKING:
    import pandas as pd

DECIMALS = 1
"""Scores are printed, and compared for best and second best, with this many decimals."""

RANDOM_WEIGHTS = "random weights"

Sources = Sequence[Mapping[str, Source]]
"""For each record of a row: column -> where its score is."""
Ties = Mapping[tuple[str, bool, str], frozenset[str]]
"""(heading, joint, column) -> labels of the rows that tie with the best, the best included."""
Gains = Mapping[tuple[str, bool, str, str], Difference]
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
            older = len(self.runs.superseded)
            runs = "an older run" if older == 1 else f"{older} older runs"
            marks.append(f"replaces {runs} of the same seed")
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
    which order they come does not matter. `extra` are names of `score.EXTRA_COLUMNS`; `ties`, of
    `contrasts.best_ties`, marks rows not significantly worse than the best; `gains`, of
    `contrasts.over_twins`, shows what pretraining adds.

    Raises:
        UnknownNameError: an optional column that does not exist.
    """
    extras = score.extra_columns(extra)
    return [_table(group, extras, ties, gains or {}) for group in group_records(records)]


def _table(
    group: TableGroup, extras: tuple[ExtraColumn, ...], ties: Ties | None, gains: Gains
) -> Table:
    columns = tuple(score.score_columns(group.records))
    rows = list(_rows(group, columns[:-1]))
    for joint in (False, True):
        places = [n for n, row in enumerate(rows) if row.kind == "encoder" and row.joint is joint]
        mode = [rows[place] for place in places]
        for column in columns:
            _rank(mode, column, score.higher_is_better(group.records, column))
        ranks = _mean_ranks(mode, [column for column in columns if column in AVERAGED])
        for place, rank in zip(places, ranks, strict=True):
            rows[place] = replace(rows[place], mean_rank=rank)
    for row, column in itertools.product(rows, columns):
        key, cell = (group.heading, row.joint is True, column), row.cells[column]
        if ties is not None and column != AVERAGE:
            tested = row.runs is not None and key in ties
            cell = replace(cell, tied=row.label in ties[key] if tested else None)
        gain = gains.get((*key, row.label)) if row.runs else None
        row.cells[column] = replace(cell, over_twin=gain)
    return Table(group, columns, extras, tuple(rows))


def _rows(group: TableGroup, columns: Sequence[str]) -> Iterator[Row]:
    rows = [(row, [score.score_sources(record) for record in row.records]) for row in group.rows]
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
        lifts = (score.lift(each[column]) if column in each else None for each in sources)
        own = [_cell(each.get(column), None) or missing("task not run") for each in sources]
        cells[column] = replace(score.over_seeds(own), lift=score.mean_if_whole(lifts))
    return cells | {AVERAGE: score.average(cells)}


def _blind(
    joint: bool | None, control: str, rows: Sequence[Sources], columns: Sequence[str]
) -> Iterator[Row]:
    """Yield a blind baseline, the mean over rows, or nothing where no row was run with it."""
    cells, run = {}, False
    for column in columns:
        by_row = [[_cell(each.get(column), control) for each in sources] for sources in rows]
        whole = [[cell for cell in seeds if cell] for seeds in by_row if all(seeds)]
        cells[column] = score.over_rows([score.over_seeds(each) for each in whole])
        run = run or bool(whole)
    if run:
        yield Row(CONTROLS[control].label, joint, cells | {AVERAGE: score.average(cells)})


def _cell(source: Source | None, control: str | None) -> Cell | None:
    """Return a run's own score, or that under a control, which it need not have."""
    if source is None:
        return None
    if control is None:
        return score.from_score(source.scores.metrics.get(source.metric))
    scores = source.scores.controls.get(control, {})
    return score.from_score(scores[source.metric]) if source.metric in scores else None


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


def _mean_ranks(rows: Sequence[Row], columns: Sequence[str]) -> list[float | None]:
    """Return each row's mean rank in columns where more is better; rows that tie share a rank."""
    scores = np.array([[row.cells[c].value for c in columns] for row in rows], dtype=np.float64)
    if len(rows) < 2 or not columns or np.isnan(scores).any():
        return [None] * len(rows)
    above, equal = (compare(scores, scores[:, None]).sum(1) for compare in (np.greater, np.equal))
    return [float(rank) for rank in (above + equal / 2 + 0.5).mean(axis=1)]


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
        [score.ENCODER, *table.columns, score.MEAN_RANK, *(extra.header for extra in table.extras)]
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
    facts = (row.label, encoder.name, encoder.family, encoder.supervision, runs.mode)
    return word.casefold() in " ".join(facts).casefold()


def _sort_key(table: Table, row: Row, column: str | None) -> tuple[int, bool, bool, float, str]:
    mode = 2 if row.joint is None else int(row.joint)
    if column is None or row.kind != "encoder":
        return mode, row.kind != "encoder", False, 0.0, ""
    value = _flat(table, row, table.columns).get(column)
    if isinstance(value, str):
        return mode, False, False, 0.0, value.casefold()
    higher = column != score.MEAN_RANK and score.higher_is_better(table.group.records, column)
    return mode, False, value is None, (1.0 if higher is False else -1.0) * (value or 0.0), ""


_PARTS: dict[str, tuple[str, Callable[[Cell], Any]]] = {
    "±": ("float64", lambda cell: cell.half_width),
    "lift": ("float64", lambda cell: cell.lift),
    "seed share": ("float64", lambda cell: cell.seed_share),
    "n": ("Int64", lambda cell: cell.samples or None),
    "images": ("Int64", lambda cell: cell.images or None),
    "rank": ("Int64", lambda cell: cell.rank),
}
"""After a score column's name: type in a DataFrame, and value."""


def flat_rows(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Return one dictionary per row: column -> JSON value, keys in the order of columns.

    Each score column C comes with `C ±` (half of the 95% interval), `C lift` (gain over the best
    blind baseline of the same run, mean over runs), `C n`, `C images`, `C rank` (1 best, 2 second
    best in its mode), `C reason` (why n/a) and, over several seeds, `C seed share` (of the
    variance, how much comes from seeds); where ties were tested with `C tied`, where a random twin
    was run with `C over random twin`, its `low` and `high`. `Mean Rank` is scale-free, `Marks` says
    what a reader must know, `Runs` has the run ids.
    """
    columns = _all_columns(tables)
    return [_flat(table, row, columns) for table in tables for row in table.rows]


def _all_columns(tables: Sequence[Table]) -> list[str]:
    return score.score_columns(record for table in tables for record in table.group.records)


def _flat(table: Table, row: Row, columns: Sequence[str]) -> dict[str, Any]:
    cells = {column: row.cells.get(column) or missing("task not run") for column in columns}
    supervision, images = row.pretraining
    flat: dict[str, Any] = {
        score.SETTING: table.heading,
        score.JOINT: row.joint,
        score.KIND: row.kind,
        score.SUPERVISION: supervision,
        score.ENCODER: row.label,
        score.IMAGES: images,
        **{column: cell.value for column, cell in cells.items()},
        score.MEAN_RANK: row.mean_rank,
        **{column.header: row.extra(column) for column in table.extras},
        score.SEEDS: len(row.runs.records) if row.runs else None,
        score.MARKS: "; ".join(row.marks),
    }
    for column, cell in cells.items():
        flat |= {f"{column} {part}": read(cell) for part, (_, read) in _PARTS.items()}
        flat[f"{column} reason"] = cell.reason
    flat[score.RUNS] = " ".join(record.run_id for record in row.runs.records) if row.runs else ""
    for column, cell in cells.items():
        if gain := cell.over_twin:
            name = f"{column} {score.OVER_TWIN}"
            flat |= {name: gain.value, f"{name} low": gain.low, f"{name} high": gain.high}
    return flat | {f"{c} tied": cell.tied for c, cell in cells.items() if cell.tied is not None}


def to_frame(tables: Sequence[Table]) -> pd.DataFrame:
    """Return tables as one DataFrame with the columns of `flat_rows`; NaN where n/a."""
    import pandas as pd

    types = {score.SEEDS: "Int64", score.MEAN_RANK: "float64"}
    for column in _all_columns(tables):
        types |= {column: "float64"}
        types |= {f"{column} {part}": kind for part, (kind, _) in _PARTS.items()}
    frame = pd.DataFrame(flat_rows(tables))
    return frame.astype(types) if tables else frame
