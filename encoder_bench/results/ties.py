"""Which rows are not significantly worse than the best of their half.

What belongs here: the tests of a table and their correction for there being many. It needs the
predictions beside the records; the table itself does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord
from encoder_bench.metrics.statistics import holm
from encoder_bench.results.columns import higher_is_better, score_sources
from encoder_bench.results.grouping import TableGroup, TableRow, group_records
from encoder_bench.results.paired import randomisation_p
from encoder_bench.results.sample_scores import row_scores
from encoder_bench.tasks.predictions import has_predictions, predictions_path

LEVEL = 0.05
MOST_RUNS = 100
"""Of which ties are found without being asked for: some seconds on two cores."""

Ties = Mapping[tuple[str, bool, str], frozenset[str]]
"""(setting, joint, column) -> labels of the rows that tie with the best, the best included."""


@dataclass(frozen=True, slots=True)
class _Contest:
    """One row against the best of its half in one column."""

    joint: bool
    column: str
    label: str
    best: str
    p: float


def best_ties(results: Path, records: Sequence[RunRecord]) -> Ties:
    """Return the best tie group of each half and column, from the predictions.

    Each row is tested against the best of its half by a paired randomisation test over images, on
    samples scored in both, seeds averaged sample by sample; p is corrected over all tests of a
    table by Holm's method, and a row ties where it is at least 0.05.

    Raises:
        RecordError: predictions are missing or damaged.

    Reference: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    ties: dict[tuple[str, bool, str], frozenset[str]] = {}
    for group in group_records(records):
        contests = _contests(results, group)
        corrected = holm([contest.p for contest in contests])
        found: dict[tuple[bool, str], set[str]] = {}
        for contest, p in zip(contests, corrected, strict=True):
            members = found.setdefault((contest.joint, contest.column), {contest.best})
            if p >= LEVEL:
                members.add(contest.label)
        for (joint, column), labels in found.items():
            ties[group.heading, joint, column] = frozenset(labels)
    return ties


def usual_ties(results: Path, records: Sequence[RunRecord]) -> tuple[Ties | None, str | None]:
    """Return the tie groups, or None and the reason why nobody waits for them.

    They are left out where predictions are not all there, and for more than `MOST_RUNS` runs,
    whose predictions take longer to read than a table should take.
    """
    if len(records) > MOST_RUNS:
        return None, f"more than {MOST_RUNS} runs; --ties reads their predictions all the same"
    missing = [
        path
        for record in records
        for task in record.tasks
        if not has_predictions(path := predictions_path(results, record, task))
    ]
    if missing:
        return None, f"{missing[0]} is not there"
    try:
        return best_ties(results, records), None
    except RecordError as error:
        return None, str(error)


def _contests(results: Path, group: TableGroup) -> list[_Contest]:
    contests = []
    for joint in (False, True):
        half = [row for row in group.rows if row.joint == joint]
        columns = dict.fromkeys(
            column for row in half for record in row.records for column in score_sources(record)
        )
        for column in columns:
            contests += _column_contests(results, half, joint, column)
    return contests


def _column_contests(
    results: Path, half: Sequence[TableRow], joint: bool, column: str
) -> list[_Contest]:
    scores = {row.label: row_scores(results, row, column).get(None) for row in half}
    scored = {label: found for label, found in scores.items() if found and found.scores}
    if len(scored) < 2:
        return []
    records = [record for row in half for record in row.records]
    higher = higher_is_better(records, column)
    if higher is None:
        return []
    best = (max if higher else min)(scored, key=lambda label: scored[label].mean)
    contests = []
    for label, found in scored.items():
        shared = [sample for sample in found.scores if sample in scored[best].scores]
        if label == best or not shared:
            continue
        p = randomisation_p(
            [scored[best].scores[sample] for sample in shared],
            [found.scores[sample] for sample in shared],
            [found.images[sample] for sample in shared],
        )
        contests.append(_Contest(joint, column, label, best, p))
    return contests
