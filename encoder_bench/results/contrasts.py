"""Comparisons within a results folder, tested and corrected: all contrasts, ties with the best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord
from encoder_bench.metrics.statistics import Difference, holm, other_pairs
from encoder_bench.results.grouping import (
    TableGroup,
    TableRow,
    find_twin,
    group_records,
    pair_key,
)
from encoder_bench.results.paired import Scores, difference, row_scores, shared_scores
from encoder_bench.results.score import higher_is_better, score_sources
from encoder_bench.results.table import Gains, Ties
from encoder_bench.tasks.controls import CONTROLS
from encoder_bench.tasks.predictions import has_predictions, predictions_path

if TYPE_CHECKING:
    import pandas as pd

BLIND, JOINT, ENCODERS = "own − best blind", "joint − frozen", "encoder − encoder"
TWINS = "own − random twin"
LEVEL = 0.05
"""Of the test whether a row ties with the best."""
MAX_RUNS = 100
"""Ties are found by default among at most this many runs: some seconds on two cores."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """One tested difference, A − B, in the metric's unit.

    Attributes:
        setting: heading of the table with both rows.
        family: `BLIND`, `TWINS`, `JOINT` or `ENCODERS`; Holm's correction runs over a family of a
            setting.
        mode: `frozen`, `joint`, or `both` where the modes are compared.
        seeds: runs of each side, at least.
        score_a: mean over the samples and seeds.
        difference: over images and seeds, its p uncorrected.
    """

    setting: str
    family: str
    mode: str
    column: str
    a: str
    b: str
    seeds: int
    samples: int
    score_a: float
    score_b: float
    difference: Difference
    p_holm: float = 1.0


class _Column:
    """One score column of a table: its rows' sample scores, each read once."""

    def __init__(self, results: Path, group: TableGroup, name: str) -> None:
        self.name, self.heading = name, group.heading
        higher = higher_is_better(group.records, name)
        self.best: Callable[..., Any] | None = {True: max, False: min, None: None}[higher]
        scores = [(row, row_scores(results, row, name)) for row in group.rows]
        self.rows = [(row, each) for row, each in scores if None in each and each[None].samples]

    def mode(self, *, joint: bool) -> list[tuple[TableRow, Scores]]:
        """Return the pretrained rows of a mode with their own answers' scores."""
        rows = [(row, found) for row, found in self.rows if row.pretrained]
        return [(row, found[None]) for row, found in rows if row.joint == joint]


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two sides to compare, each with its name, and the rows that they are of."""

    column: _Column
    a: tuple[str, Scores]
    b: tuple[str, Scores]
    rows: tuple[TableRow, ...]


def contrasts(results: Path, records: Sequence[RunRecord]) -> list[Contrast]:
    """Return all contrasts of the records, table by table and family by family.

    A row against its best blind baseline, an encoder against its random twin, tuned jointly
    against the same one frozen, and all pairs of encoders in one mode; each family is corrected by
    Holm's method on its own. Raises as `row_scores`.
    """
    families = {
        BLIND: _against_blind,
        TWINS: _against_twin,
        JOINT: _joint_gains,
        ENCODERS: _between_encoders,
    }
    found: list[Contrast] = []
    for columns in _tables(results, records):
        for family, pairs_of in families.items():
            pairs = [pair for column in columns for pair in pairs_of(column)]
            tested = [c for pair in pairs if (c := _contrast(family, pair))]
            corrected = holm([contrast.difference.p for contrast in tested])
            found += [replace(c, p_holm=p) for c, p in zip(tested, corrected, strict=True)]
    return found


def contrast_frame(found: Sequence[Contrast]) -> pd.DataFrame:
    """Return contrasts as a frame, one per row, the interval and both p beside the difference."""
    import pandas as pd

    rows = []
    for each in found:
        row = asdict(each)
        difference, p_holm = row.pop("difference"), row.pop("p_holm")
        row |= {"difference": difference.pop("value"), **difference}
        rows.append(row | {"p_holm": p_holm})
    return pd.DataFrame(rows)


def best_ties(results: Path, records: Sequence[RunRecord]) -> Ties:
    """Return the rows that tie with the best of each mode and column, from the predictions.

    Each row is tested against the best in its mode, as in `contrasts`; p is corrected by Holm's
    method over all pairs of rows of a mode and column, of the whole table, since the data chose the
    best. A row ties where it is at least 0.05. Raises as `row_scores`.
    """
    ties: dict[tuple[str, bool, str], frozenset[str]] = {}
    for columns in _tables(results, records):
        pairs = [pair for column in columns for pair in _against_best(column)]
        shared = [(pair, shared_scores(pair.a[1], pair.b[1])) for pair in pairs]
        tested = [(pair, difference(*scores).p) for pair, scores in shared if scores]
        modes = [each.mode(joint=joint) for each in columns if each.best for joint in (False, True)]
        unseen = sum(other_pairs(len(rows)) for rows in modes)
        corrected = holm([p for _, p in tested], unseen=unseen)
        for (pair, _), p in zip(tested, corrected, strict=True):
            key = (pair.column.heading, pair.rows[0].joint, pair.column.name)
            tied = {pair.b[0]} if p >= LEVEL else set()
            ties[key] = ties.get(key, frozenset({pair.a[0]})) | tied
    return ties


def over_twins(results: Path, records: Sequence[RunRecord]) -> Gains:
    """Return each row's difference to its random twin, uncorrected; raises as `row_scores`."""
    if all(record.encoder.pretrained for record in records):
        return {}
    pairs = [p for columns in _tables(results, records) for c in columns for p in _against_twin(c)]
    found = [(pair, _contrast(TWINS, pair)) for pair in pairs]
    return {
        (pair.column.heading, pair.rows[0].joint, pair.column.name, pair.a[0]): each.difference
        for pair, each in found
        if each
    }


def usual_ties(results: Path, records: Sequence[RunRecord]) -> tuple[Ties | None, str | None]:
    """Return the ties with the best, or None and the reason why they were not looked for.

    They are left out where predictions are missing, and for more than `MAX_RUNS` runs, whose
    predictions take longer to read than a table should take.
    """
    if len(records) > MAX_RUNS:
        return None, f"more than {MAX_RUNS} runs; --ties reads their predictions all the same"
    if lost := lost_predictions(results, records):
        return None, f"{lost[0]} is not there"
    try:
        return best_ties(results, records), None
    except RecordError as error:
        return None, str(error)


def lost_predictions(results: Path, records: Sequence[RunRecord]) -> list[Path]:
    """Return the predictions files of records that are not there."""
    files = (predictions_path(results, run, task) for run in records for task in run.tasks)
    return [path for path in files if not has_predictions(path)]


def _tables(results: Path, records: Sequence[RunRecord]) -> Iterator[list[_Column]]:
    for group in group_records(records):
        names = dict.fromkeys(column for r in group.records for column in score_sources(r))
        yield [_Column(results, group, name) for name in names]


def _against_blind(column: _Column) -> Iterator[_Pair]:
    for row, scores in column.rows:
        blind = {
            name: found
            for name, found in scores.items()
            if name and CONTROLS[name].counts and found.samples
        }
        if blind and column.best:
            name = column.best(blind, key=lambda name: blind[name].mean)
            yield _Pair(column, (row.label, scores[None]), (name, blind[name]), (row,))


def _against_twin(column: _Column) -> Iterator[_Pair]:
    for row, scores in column.rows:
        place = find_twin(row, [other for other, _ in column.rows])
        if place is not None:
            twin, others = column.rows[place]
            sides = (row.label, scores[None]), (twin.label, others[None])
            yield _Pair(column, *sides, (row, twin))


def _joint_gains(column: _Column) -> Iterator[_Pair]:
    frozen = {pair_key(row.records[0]): (row, each) for row, each in column.mode(joint=False)}
    for row, scores in column.mode(joint=True):
        if found := frozen.get(pair_key(row.records[0])):
            other, others = found
            yield _Pair(column, (row.name, scores), (other.name, others), (row, other))


def _between_encoders(column: _Column) -> Iterator[_Pair]:
    for joint in (False, True):
        rows = column.mode(joint=joint)
        rows.sort(key=lambda each: each[1].mean, reverse=column.best is not min)
        for (a, scores_a), (b, scores_b) in combinations(rows, 2):
            yield _Pair(column, (a.label, scores_a), (b.label, scores_b), (a, b))


def _against_best(column: _Column) -> Iterator[_Pair]:
    for joint in (False, True):
        rows = column.mode(joint=joint)
        if column.best and len(rows) > 1:
            best, scores = column.best(rows, key=lambda each: each[1].mean)
            for row, other in rows:
                if row is not best:
                    yield _Pair(column, (best.label, scores), (row.label, other), (best, row))


def _contrast(family: str, pair: _Pair) -> Contrast | None:
    """Return the contrast of two sides, or None where they share no sample."""
    (name_a, a), (name_b, b) = pair.a, pair.b
    shared = shared_scores(b, a)
    if shared is None:
        return None
    b, a = shared
    return Contrast(
        setting=pair.column.heading,
        family=family,
        mode="both" if len({row.joint for row in pair.rows}) > 1 else pair.rows[0].mode,
        column=pair.column.name,
        a=name_a,
        b=name_b,
        seeds=min(len(row.records) for row in pair.rows),
        samples=len(a.samples),
        score_a=a.mean,
        score_b=b.mean,
        difference=difference(b, a),
    )
