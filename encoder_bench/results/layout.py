"""A table as it is laid out on a page, before any format: headings, cells, footnotes.

What belongs here: which words and numbers stand where and what they are (best, n/a, blind).
Escaping and markup are the formats' business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from encoder_bench.results.columns import (
    AVERAGE,
    ENCODER,
    EXTRA_COLUMNS,
    HALF,
    IMAGES,
    KIND,
    MARKS,
    SEEDS,
    SETTING,
    SUPERVISION,
    half_width_column,
    images_column,
    lift_column,
    rank_column,
    reason_column,
    samples_column,
    tied_column,
)

Emphasis = Literal["best", "second", ""]

NOT_AVAILABLE = "n/a"
_WITHOUT_LIFT = frozenset({"SPICE"})
"""A second metric of captioning, whose lift stands under CIDEr."""
_TIED = (
    "not significantly worse than the best of its half (paired randomisation test over images, "
    "p at least 0.05 after Holm's correction over the table)"
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        text: what is printed, unescaped.
        half_width: `±` figure printed smaller after it, or empty.
        lift: signed figure printed smaller under it, or empty.
        emphasis: best or second best of its half.
        note: the letters of its footnotes, or empty.
        number: whether it is set like a number.
    """

    text: str
    half_width: str = ""
    lift: str = ""
    emphasis: Emphasis = ""
    note: str = ""
    number: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One row, of an encoder or a blind control; `opens` where a new half begins."""

    cells: tuple[Cell, ...]
    blind: bool
    opens: bool


@dataclass(frozen=True, slots=True)
class Page:
    """One table: heading, header, rows, and footnotes as (letter, text); no letter, general."""

    heading: str
    header: tuple[Cell, ...]
    lines: tuple[Line, ...]
    footnotes: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Footnotes:
    """Letters handed out to texts, each text once."""

    letters: dict[str, str] = field(default_factory=dict)

    def letter(self, text: str) -> str:
        if text not in self.letters:
            self.letters[text] = _letter(len(self.letters))
        return self.letters[text]


def lay_out(frame: pd.DataFrame) -> list[Page]:
    """Return the pages of a frame that `table` made: one for each setting."""
    return [_page(str(setting), part) for setting, part in frame.groupby(SETTING, sort=False)]


def shown_scores(frame: pd.DataFrame) -> list[str]:
    """Return the score columns of a frame, in order."""
    return [name for name in frame.columns if rank_column(str(name)) in frame.columns]


def _page(heading: str, part: pd.DataFrame) -> Page:
    scores = shown_scores(part)
    extras = [c for c in EXTRA_COLUMNS.values() if c.header in part.columns]
    extras.sort(key=lambda column: list(part.columns).index(column.header))
    seeds = bool((part[SEEDS].fillna(1) > 1).any())
    notes = _Footnotes()
    records: list[dict[str, Any]] = [
        dict(zip(part.columns, row, strict=True)) for row in part.values
    ]
    lines, previous = [], object()
    for row in records:
        half = _half(row)
        cells = [Cell(half), Cell(row[SUPERVISION]), _name(row, notes), Cell(row[IMAGES])]
        cells += [_score(row, column, notes) for column in scores]
        cells += [_plain(row[column.header], column.digits) for column in extras]
        if seeds:
            cells.append(_plain(row[SEEDS], 0))
        lines.append(Line(tuple(cells), row[KIND] == "blind", opens=half != previous))
        previous = half
    names = [HALF, SUPERVISION, ENCODER, IMAGES]
    header = [Cell(name) for name in names]
    header += [Cell(name, number=True) for name in scores]
    header += [Cell(column.header, number=True) for column in extras]
    if seeds:
        header.append(Cell(SEEDS, number=True))
    general = _general_notes(records, scores, seeds=seeds)
    general += [f"{column.header}: {column.meaning}." for column in extras]
    lettered = [(letter, text) for text, letter in notes.letters.items()]
    return Page(
        heading, tuple(header), tuple(lines), (*lettered, *(("", text) for text in general))
    )


def _half(row: dict[str, Any]) -> str:
    if row[HALF] is None or pd.isna(row[HALF]):
        return "no model"
    return "yes" if row[HALF] else "no"


def _name(row: dict[str, Any], notes: _Footnotes) -> Cell:
    if not row[MARKS]:
        return Cell(row[ENCODER])
    letters = [notes.letter(_explained(mark)) for mark in row[MARKS].split("; ")]
    name = row[ENCODER]
    if "random weights" in row[MARKS]:
        name += " [random weights]"
    return Cell(name, note=",".join(letters))


def _explained(mark: str) -> str:
    if mark == "random weights":
        return (
            "the encoder's weights are seeded random ones, not pretrained; the row says nothing "
            "about the family that it is named after"
        )
    return mark


def _score(row: dict[str, Any], column: str, notes: _Footnotes) -> Cell:
    value = row[column]
    if value is None or not math.isfinite(value):
        return Cell(NOT_AVAILABLE, note=notes.letter(str(row[reason_column(column)])), number=True)
    half = row[half_width_column(column)]
    rank = row[rank_column(column)]
    emphasis: Emphasis = "" if pd.isna(rank) else "best" if rank == 1 else "second"
    width = "" if half is None or not math.isfinite(half) else f"{half:.1f}"
    tied = emphasis != "best" and row.get(tied_column(column)) is True
    note = notes.letter(_TIED) if tied else ""
    return Cell(f"{value:.1f}", width, _lift(row, column), emphasis, note, number=True)


def _lift(row: dict[str, Any], column: str) -> str:
    value = row[lift_column(column)]
    shown = column not in _WITHOUT_LIFT and value is not None and math.isfinite(value)
    return f"{value:+.1f}" if shown else ""


def _plain(value: Any, digits: int) -> Cell:
    if value is None or pd.isna(value):
        return Cell("–", number=True)
    return Cell(f"{value:,.{digits}f}", number=True)


def _general_notes(
    rows: Sequence[dict[str, Any]], scores: Sequence[str], *, seeds: bool
) -> list[str]:
    notes = [
        "Scores in percent; ± is half of the 95% interval, bootstrapped over images. Avg is the "
        "mean of VQA Acc, CIDEr, OC Acc and MCI Acc, and its ± the mean of theirs, which holds "
        "however their errors go together.",
        "Samples (images): " + _sample_counts(rows, scores) + ".",
    ]
    if seeds:
        notes.append(
            "Means over seeds; ± covers both the choice of images and the spread between seeds."
        )
    if any(_lift(row, column) for row in rows for column in scores):
        notes.append(
            "Under each score (SPICE aside) its lift over blind: the score less the best of the "
            "run's own blind controls; below 0 the model would have done better without looking. "
            "Under Avg, the mean lift of its four scores."
        )
    if any(row[KIND] == "blind" for row in rows):
        notes.append(
            "Blind rows (in italics): what is scored without looking. 'no image' and 'shuffled "
            "images' are means over the models of their half; the other rows need no model."
        )
    return notes


def _sample_counts(rows: Sequence[dict[str, Any]], scores: Sequence[str]) -> str:
    parts = []
    for column in scores:
        counts = {
            (int(row[samples_column(column)]), int(row[images_column(column)]))
            for row in rows
            if row[KIND] == "encoder"
            and not pd.isna(row[samples_column(column)])
            and not pd.isna(row[images_column(column)])
        }
        if column == AVERAGE or not counts:
            continue
        low, high = min(counts), max(counts)
        text = f"{low[0]:,} ({low[1]:,})"
        if low != high:
            text += f" to {high[0]:,} ({high[1]:,})"
        parts.append(f"{column} {text}")
    return ", ".join(parts) or "none"


def _letter(index: int) -> str:
    """Return a, b, ... z, aa, ab, ...

    >>> [_letter(i) for i in (0, 25, 26)]
    ['a', 'z', 'aa']
    """
    letters = ""
    index += 1
    while index:
        index, remainder = divmod(index - 1, 26)
        letters = chr(ord("a") + remainder) + letters
    return letters
