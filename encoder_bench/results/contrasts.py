"""Every comparison that a results folder allows, tested, with the correction for there being many.

What belongs here: which pairs are compared. Three families of contrasts, each corrected by Holm's
method on its own: a row against its best blind control, an encoder tuned jointly against the same
one frozen, and each encoder of a half against each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import pandas as pd

from encoder_bench.base.record import RunRecord
from encoder_bench.metrics.statistics import holm
from encoder_bench.results.columns import higher_is_better, score_sources
from encoder_bench.results.grouping import TableGroup, TableRow, group_records
from encoder_bench.results.paired import PairedDifference, paired_difference, swaps_for
from encoder_bench.results.sample_scores import SampleScores, row_scores

BLIND, JOINT, ENCODERS = "own less best blind", "joint less frozen", "encoder less encoder"


@dataclass(frozen=True, slots=True)
class Contrast:
    """One tested difference, A less B, in the metric's unit.

    Attributes:
        setting: heading of the table that both rows stand in.
        family: `BLIND`, `JOINT` or `ENCODERS`; Holm's correction runs over a family of a setting.
        mode: `frozen`, `joint`, or `both` where the modes are compared.
        column: of the table.
        a: the row, or its label and mode.
        b: what it is compared with.
        seeds: runs of each side, at least.
        samples: compared.
        score_a: mean over the samples and seeds; `score_b` likewise.
        difference: with its 95% interval, clustered on images, and uncorrected p.
        p_holm: corrected p.
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
    difference: PairedDifference
    p_holm: float = 1.0


def contrasts(results: Path, records: Sequence[RunRecord]) -> list[Contrast]:
    """Return all contrasts of the records, table by table and family by family.

    Raises:
        RecordError: predictions are missing or damaged.
    """
    found: list[Contrast] = []
    for group in group_records(records):
        columns = dict.fromkeys(column for r in group.records for column in score_sources(r))
        readers = {column: _Reader(results, group, column) for column in columns}
        for family in (_against_blind, _joint_gains, _between_encoders):
            pairs = [pair for column in columns for pair in family(readers[column])]
            found += _tested(pairs)
    return found


def contrast_frame(found: Sequence[Contrast]) -> pd.DataFrame:
    """Return contrasts as a frame, one a row, the interval and both p beside the difference."""
    return pd.DataFrame(
        [
            {
                "setting": each.setting,
                "family": each.family,
                "mode": each.mode,
                "column": each.column,
                "a": each.a,
                "b": each.b,
                "seeds": each.seeds,
                "samples": each.samples,
                "score_a": each.score_a,
                "score_b": each.score_b,
                "difference": each.difference.value,
                "low": each.difference.low,
                "high": each.difference.high,
                "p": each.difference.p,
                "p_holm": each.p_holm,
            }
            for each in found
        ]
    )


class _Reader:
    """One column's sample scores by row of a table, each row's predictions read once."""

    def __init__(self, results: Path, group: TableGroup, column: str) -> None:
        self.group, self.column = group, column
        self._results = results
        self._read: dict[tuple[str, bool], dict[str | None, SampleScores]] = {}

    def __call__(self, row: TableRow) -> dict[str | None, SampleScores]:
        key = (row.label, row.joint)
        if key not in self._read:
            self._read[key] = row_scores(self._results, row, self.column)
        return self._read[key]


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two sides to be compared."""

    family: str
    mode: str
    names: tuple[str, str]
    sides: tuple[SampleScores, SampleScores]
    rows: tuple[TableRow, ...]
    reader: _Reader


def _against_blind(reader: _Reader) -> Iterator[_Pair]:
    for row in reader.group.rows:
        scores = reader(row)
        blind = {name: found for name, found in scores.items() if name and found.scores}
        if None in scores and blind:
            higher = higher_is_better(reader.group.records, reader.column)
            best = (min if higher is False else max)(blind, key=lambda name: blind[name].mean)
            sides = (scores[None], blind[best])
            yield _Pair(BLIND, _mode(row), (row.label, best), sides, (row,), reader)


def _joint_gains(reader: _Reader) -> Iterator[_Pair]:
    frozen = {row.label: row for row in reader.group.rows if not row.joint}
    for row in reader.group.rows:
        other = frozen.get(row.label)
        if row.joint and other is not None and None in reader(row) and None in reader(other):
            sides = (reader(row)[None], reader(other)[None])
            names = (f"{row.label}, joint", f"{row.label}, frozen")
            yield _Pair(JOINT, "both", names, sides, (row, other), reader)


def _between_encoders(reader: _Reader) -> Iterator[_Pair]:
    for joint in (False, True):
        half = [row for row in reader.group.rows if row.joint == joint and None in reader(row)]
        half.sort(key=lambda row: reader(row)[None].mean, reverse=True)
        for a, b in combinations(half, 2):
            sides = (reader(a)[None], reader(b)[None])
            yield _Pair(ENCODERS, _mode(a), (a.label, b.label), sides, (a, b), reader)


def _tested(pairs: Sequence[_Pair]) -> list[Contrast]:
    """Return the contrasts of one family, corrected together."""
    swaps = swaps_for(len(pairs))
    found = [contrast for pair in pairs if (contrast := _contrast(pair, swaps)) is not None]
    corrected = holm([contrast.difference.p for contrast in found])
    return [replace(each, p_holm=p) for each, p in zip(found, corrected, strict=True)]


def _contrast(pair: _Pair, swaps: int) -> Contrast | None:
    """Return the contrast of two sides, or None where they share no sample."""
    a, b = pair.sides
    shared = [sample for sample in a.scores if sample in b.scores]
    if not shared:
        return None
    ours = [a.scores[sample] for sample in shared]
    theirs = [b.scores[sample] for sample in shared]
    images = [a.images[sample] for sample in shared]
    return Contrast(
        setting=pair.reader.group.heading,
        family=pair.family,
        mode=pair.mode,
        column=pair.reader.column,
        a=pair.names[0],
        b=pair.names[1],
        seeds=min(len(row.records) for row in pair.rows),
        samples=len(shared),
        score_a=math.fsum(ours) / len(ours),
        score_b=math.fsum(theirs) / len(theirs),
        difference=paired_difference(theirs, ours, images, swaps=swaps),
    )


def _mode(row: TableRow) -> str:
    return "joint" if row.joint else "frozen"
