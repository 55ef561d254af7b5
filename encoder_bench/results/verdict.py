"""What to choose: the best row, its ties, the cheapest near it, and what joint tuning gains."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from encoder_bench.base.errors import RecordError, UnknownNameError
from encoder_bench.base.record import RunRecord
from encoder_bench.metrics.statistics import Difference, Matrix, holm, other_pairs, plain_ratio
from encoder_bench.results.grouping import (
    TableGroup,
    TableRow,
    find_twin,
    group_records,
    pair_key,
)
from encoder_bench.results.paired import Scores, difference, row_scores, shared_scores
from encoder_bench.results.score import AVERAGE, AVERAGED, higher_is_better, score_sources

LEVEL, NEAR_POINTS = 0.05, 1.0
_LISTED = 6
"""Names in a sentence; of more the number is said."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The best row by one score, the rows that tie with it and those that are worse.

    Random weights are no choice. `unbeaten` are the rows of them that the best is not significantly
    above, among its own random twin and those that score higher; without a twin, among all.
    """

    by: str
    best: str
    score: float
    tied: tuple[str, ...]
    worse: tuple[str, ...]
    unbeaten: tuple[str, ...] = ()

    @property
    def open(self) -> bool:
        """Whether no other row is significantly worse."""
        return bool(self.tied) and not self.worse

    def sentence(self) -> str:
        """Return the choice in words; where nothing is worse, that none is established."""
        found = f"{self.by}: {self.best}, {self.score:.1f}"
        if self.open:
            found += "; that it is best is not established: no row is significantly worse."
        elif self.tied:
            found += f". Tied with {_listed(self.tied)}."
        else:
            found += f", {'ahead of all others' if self.worse else 'the only row'}."
        return found + self.above_random()

    def above_random(self) -> str:
        """Return a sentence that names random weights that the best does not beat, or nothing."""
        return (
            f" {self.best} is not significantly above {_listed(self.unbeaten)}."
            if self.unbeaten
            else ""
        )


@dataclass(frozen=True, slots=True)
class Gain:
    """What joint tuning changes for one encoder and score; `p_holm` is corrected over all."""

    encoder: str
    by: str
    difference: Difference
    p_holm: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one table says.

    Attributes:
        choice: by the mean of the scores.
        by_task: by each score.
        cheapest: the row of fewest GFLOPs within a point of the best mean; None where unknown.
        gains: of joint tuning, every encoder and score that has both modes.
        seeds: runs of each row that the choice is between.
        left_out: rows without all of the scores that are chosen by; by a score that they have they
            are compared.
    """

    setting: str
    choice: Choice
    by_task: tuple[Choice, ...]
    cheapest: str | None
    gains: tuple[Gain, ...]
    seeds: Mapping[str, int]
    left_out: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """Return the verdict in words."""
        found = [f"Choose by {self.choice.sentence()}"]
        if self.cheapest is not None:
            near = f"Cheapest within {NEAR_POINTS:g} point of {self.choice.by}"
            found.append(f"{near}: {self.cheapest}.")
        if len(self.by_task) > 1:
            found += [each.sentence() for each in self.by_task if not each.open]
            heads = [f"{c.by} ({c.best}, {c.score:.1f})" for c in self.by_task if c.open]
            if heads:
                found.append(f"Highest, but no row is significantly worse: {', '.join(heads)}.")
            found += [f"{c.by}:{c.above_random()}" for c in self.by_task if c.open and c.unbeaten]
        clear = [gain for gain in self.gains if gain.p_holm < LEVEL]
        for gain in clear:
            verb = "helps" if gain.difference.value > 0 else "harms"
            found.append(
                f"Joint tuning {verb} {gain.encoder} by {gain.difference.value:+.1f} "
                f"{gain.difference.interval(1)} on {gain.by}."
            )
        if len(clear) < len(self.gains):
            where = "elsewhere" if clear else "for any encoder on any task"
            found.append(f"Whether joint tuning has an effect is not established {where}.")
        if self.left_out:
            found.append(f"Left out, without all of these scores: {_listed(self.left_out)}.")
        if single := [name for name, runs in self.seeds.items() if runs == 1]:
            which = "per row" if len(single) == len(self.seeds) else f"of {_listed(single)}"
            found.append(f"One seed {which}: the variance of seeds is not known and not counted.")
        return found


def recommend(
    results: Path,
    records: Sequence[RunRecord],
    *,
    max_gflops: float | None = None,
    tasks: Sequence[str] = (),
) -> list[Verdict]:
    """Return a verdict for each table, from paired differences that hold images and seeds.

    A row ties with the best where the difference is not significant at 5% after Holm's correction
    over all pairs of rows, pretrained and random apart; gains of joint tuning are corrected over
    pretrained encoders and scores. `max_gflops` leaves out encoders that take more per image, or
    whose cost is not known; the scores of `tasks` count, by default those that Avg counts, or all.

    Raises:
        RecordError: predictions are missing or damaged, or no row is left.
        UnknownNameError: no run has such a task.
    """
    known = {task for record in records for task in record.tasks}
    for task in tasks:
        if task not in known:
            raise UnknownNameError("task", task, known)
    kept = [r for r in records if max_gflops is None or _gflops(r) <= max_gflops]
    if records and not kept:
        least = min(_gflops(record) for record in records)
        raise RecordError(
            f"{results}: no encoder takes at most {max_gflops:g} GFLOPs; the least is {least:.3g}"
        )
    groups = group_records(kept)
    found = [v for group in groups if (v := _verdict(results, group, tasks)) is not None]
    if not found:
        raise RecordError(f"{results}: no rows with scores that a choice could be made from")
    return found


def verdict_sentences(results: Path, records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return each table's heading, empty where it is the only one, and its verdict in words.

    Where there is none, it says why.
    """
    try:
        found = recommend(results, records)
    except RecordError as error:
        return [("", [f"No verdict: {error}."])]
    return [(v.setting if len(found) > 1 else "", v.sentences()) for v in found]


def _verdict(results: Path, group: TableGroup, tasks: Sequence[str]) -> Verdict | None:
    wanted = _columns(group, tasks)
    every = {f"{row.label} ({row.mode})": row for row in group.rows}
    sources = {n: [score_sources(run).keys() for run in row.records] for n, row in every.items()}
    has = {n: [c for c in wanted if all(c in run for run in runs)] for n, runs in sources.items()}
    columns = wanted if tasks else _common(wanted, [*has.values()])
    if not tasks and set(AVERAGED) <= set(columns):
        columns = [*AVERAGED]
    asked = {name: [c for c in columns if c in own] for name, own in has.items()}
    read: dict[str, dict[str, Scores]] = {}
    for name, own in asked.items():
        try:
            read[name] = _scores(results, every[name], own)
        except RecordError:
            if len(own) == len(columns):
                raise
            read[name] = {}  # left out anyhow
    scores = {name: own for name, own in read.items() if len(own) == len(columns)}
    rows = {name: every[name] for name in scores}
    if not rows or not columns:
        return None
    by = AVERAGE if set(columns) == set(AVERAGED) else " + ".join(columns)
    means = {name: _together(list(own.values())) for name, own in scores.items()}
    choices = _choices(rows)
    least = max(means[name].mean for name in choices) - NEAR_POINTS
    costs = {n: _gflops(rows[n].records[0]) for n in choices if means[n].mean >= least}
    cheapest = min(costs, key=lambda name: (costs[name], -means[name].mean))
    known = costs[cheapest] < np.inf
    return Verdict(
        setting=group.heading,
        choice=_choice(by, means, every),
        by_task=tuple(
            _choice(c, {name: own[c] for name, own in read.items() if c in own}, every)
            for c in columns
        ),
        cheapest=f"{cheapest}, {costs[cheapest]:.3g} GFLOPs" if known else None,
        gains=tuple(_gains({name: rows[name] for name in choices}, scores, columns)),
        seeds={name: len(row.records) for name, row in rows.items()},
        left_out=tuple(name for name in every if name not in rows),
    )


def _scores(results: Path, row: TableRow, columns: Sequence[str]) -> dict[str, Scores]:
    found = {column: row_scores(results, row, column).get(None) for column in columns}
    return {column: each for column, each in found.items() if each is not None and each.samples}


def _common(columns: Sequence[str], rows: Sequence[Collection[str]]) -> list[str]:
    """Return the columns that most rows have, no more and no less; of equals those of more rows."""
    sets = Counter(frozenset(row) for row in rows if row)
    if not sets:
        return []
    best = max(sets, key=lambda own: (sets[own], sum(own <= set(row) for row in rows), len(own)))
    return [column for column in columns if column in best]


def _listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them.

    >>> _listed(["a", "b"]), _listed(list("abcdefghi"))
    ('a, b', '9 rows, among them a, b, c, d, e, f')
    """
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{len(names)} rows, among them {shown}"


def _columns(group: TableGroup, tasks: Sequence[str]) -> list[str]:
    """Return the primary scores to choose by that are better the higher they are."""
    found: dict[str, str] = {}
    for record in group.records:
        for column, source in score_sources(record).items():
            if source.metric == source.scores.primary and (not tasks or source.task in tasks):
                found.setdefault(column, source.task)
    return [name for name in found if higher_is_better(group.records, name)]


def _together(parts: Sequence[Scores]) -> Scores:
    """Return the mean of several scores of one row as one score; images are shared by them."""
    from scipy.linalg import block_diag

    by_seed = zip(*(part.values for part in parts), strict=True)
    values = np.stack([block_diag(*matrices) for matrices in by_seed])

    def mean(sums: Matrix) -> Matrix:
        pairs = np.split(sums, len(parts), axis=1)
        return np.asarray(np.mean([plain_ratio(pair) for pair in pairs], axis=0))

    samples = tuple(f"{place} {s}" for place, part in enumerate(parts) for s in part.samples)
    images = tuple(image for part in parts for image in part.images)
    return Scores(parts[0].seeds, samples, images, values, mean)


def _choices(rows: Mapping[str, TableRow]) -> list[str]:
    """Return the rows that are no random weights, or all where there are no others."""
    return [name for name, row in rows.items() if row.pretrained] or list(rows)


def _choice(by: str, scores: Mapping[str, Scores], every: Mapping[str, TableRow]) -> Choice:
    rows = {name: every[name] for name in scores}
    choices = _choices(rows)
    best = max(choices, key=lambda name: scores[name].mean)
    others = sorted(scores.keys() - {best}, key=lambda name: (-scores[name].mean, name))
    real = [name for name in others if name in choices]
    tied = _not_worse(scores, best, real, unseen=other_pairs(len(choices)))
    # what pretraining is worth is one test, of the twin: one over all random rows would hide it
    place = find_twin(every[best], [*rows.values()])
    random = [name for name in others if name not in choices]
    if place is not None:
        twin = list(rows)[place]
        random = [n for n in random if n == twin or scores[n].mean > scores[best].mean]
    return Choice(
        by,
        best,
        scores[best].mean,
        tied=tied,
        worse=tuple(name for name in real if name not in tied),
        unbeaten=_not_worse(scores, best, random, unseen=(len(choices) - 1) * len(random)),
    )


def _not_worse(
    scores: Mapping[str, Scores], best: str, others: Sequence[str], *, unseen: int
) -> tuple[str, ...]:
    """Return the rows that are not significantly worse than the best, corrected as by `holm`."""
    found = [_difference(scores[best], scores[name]) for name in others]
    corrected = holm([each.p for each in found], unseen=unseen)
    tested = zip(others, found, corrected, strict=True)
    return tuple(name for name, each, p in tested if p >= LEVEL or each.value > 0)


def _gains(
    rows: Mapping[str, TableRow], scores: Mapping[str, Mapping[str, Scores]], columns: Sequence[str]
) -> Iterator[Gain]:
    keys = {name: pair_key(row.records[0]) for name, row in rows.items()}
    frozen = {keys[name]: name for name, row in rows.items() if not row.joint}
    found = [
        (row.label, column, _difference(scores[frozen[keys[name]]][column], scores[name][column]))
        for name, row in rows.items()
        if row.joint and keys[name] in frozen
        for column in columns
    ]
    for (label, column, each), p in zip(found, holm([d.p for *_, d in found]), strict=True):
        yield Gain(label, column, each, p)


def _difference(a: Scores, b: Scores) -> Difference:
    shared = shared_scores(a, b)
    return difference(*shared) if shared else Difference(b.mean - a.mean, None, None, 1.0)


def _gflops(record: RunRecord) -> float:
    return np.inf if record.encoder.gflops is None else record.encoder.gflops
