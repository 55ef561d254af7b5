"""A printable table, before any format: heading, header, lines, footnotes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from encoder_bench.metrics.statistics import Difference
from encoder_bench.results import score
from encoder_bench.results.grouping import TableRow, false_twins
from encoder_bench.results.score import AVERAGE, MEAN_RANK, SEEDS, Cell
from encoder_bench.results.table import RANDOM_WEIGHTS, Row, Table
from encoder_bench.tasks.controls import CONTROLS

NOT_AVAILABLE = "n/a"
Emphasis = Literal["best", "second", "blind", ""]
_EMPHASIS: dict[int | None, Emphasis] = {1: "best", 2: "second"}
_WITHOUT_LIFT = "SPICE"
"""A second metric of captioning, whose lift is under CIDEr."""
MODE, MODES = "Mode", {False: "frozen", True: "joint", None: "no model"}
"""The first column, and how the mode of a row is printed there."""
PRIMARY, SAMPLES = "Primary metric", "samples"
_RANDOM = (
    "the encoder's weights are random ones by the seed, not pretrained: a baseline, which says "
    "what the architecture scores untrained"
)
_TIED = (
    "not significantly worse than the best in its mode (paired difference over images and seeds, "
    "p at least 0.05 after Holm's correction over the table)"
)
_SCORES = "Scores in percent; ± is half of the 95% interval over images."
_CIDER = "CIDEr is times 100, as usual, and can pass 100."
_AVERAGE = (
    "Avg, no percentage, is the mean of VQA Acc, CIDEr, OC Acc and MCI Acc, and its ± the mean of "
    "theirs, which holds however their errors are correlated."
)
_MEAN_RANK = (
    "Mean Rank is the mean of the ranks in {} among the encoders of the mode: 1 is best "
    "everywhere, and no column weighs more for having larger figures."
)
_SEEDS = "Means over seeds; ± covers both the choice of images and the spread between seeds."
_LIFT = (
    "Under each score{} its lift over blind: the gain over the best of the run's own blind "
    "baselines. The best of several is high by chance too, so that one below 0 does not show that "
    "looking harms."
)
_MEAN_LIFT = " Under Avg, the mean lift of its four scores."
_TWIN = (
    "Over random twin: the score minus that of the same architecture with random weights, what "
    "pretraining itself adds; ± covers images and, where there are several, the seeds of both."
)
_BLIND = "Blind baselines (in italics; a model's are means over the models of their mode): {}."


@dataclass(frozen=True, slots=True)
class Entry:
    """One place in a printable table; its text is not escaped.

    Attributes:
        half_width: `±` figure printed smaller after the text, or empty.
        lift: signed figure printed smaller under it, or empty.
        emphasis: best or second best in its mode, or of a blind baseline.
        note: letter of its footnote, or empty.
        number: whether it is aligned like a number.
        tip: what a pointer shows over it, or empty.
    """

    text: str
    half_width: str = ""
    lift: str = ""
    emphasis: Emphasis = ""
    note: str = ""
    number: bool = False
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One row; `blind` for a blind baseline, `opens` where a new section begins."""

    entries: tuple[Entry, ...]
    blind: bool = False
    opens: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """One printable table; footnotes are (letter, text), general ones without a letter."""

    heading: str
    header: tuple[Entry, ...]
    lines: tuple[Line, ...]
    footnotes: tuple[tuple[str, str], ...]


def text_page(
    heading: str, header: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str]
) -> Page:
    """Return a page of plain texts: two columns of words, then numbers.

    A row whose first word differs from the one before opens a section; a note is printed once.
    """
    lines: list[Line] = []
    for row in rows:
        entries = tuple(Entry(text, number=place > 1) for place, text in enumerate(row))
        opens = not lines or lines[-1].entries[0] != entries[0]
        lines.append(Line(entries, opens=opens))
    names = tuple(Entry(name, number=place > 1) for place, name in enumerate(header))
    return Page(heading, names, tuple(lines), tuple(("", note) for note in dict.fromkeys(notes)))


_Notes = dict[str, str]
"""Footnote -> its letter."""


def table_page(table: Table) -> Page:
    """Return a comparison table for printing."""
    notes: _Notes = {}
    seeds = any(row.runs and len(row.runs.records) > 1 for row in table.rows)
    whole = all(column in table.columns for column in score.AVERAGED)
    columns = [column for column in table.columns if whole or column != AVERAGE]
    twins = [c for c in columns if any(row.cells[c].over_twin for row in table.rows)]
    ranked = any(row.mean_rank is not None for row in table.rows)
    lines: list[Line] = []
    for row in table.rows:
        supervision, images = row.pretraining
        entries = [Entry(MODES[row.joint]), Entry(supervision), _name(row, notes), Entry(images)]
        entries += [_score(row.cells[column], column, notes) for column in columns]
        if ranked:
            entries.append(_number(row.mean_rank, 1))
        entries += [_over_twin(row.cells[column].over_twin) for column in twins]
        entries += [_number(row.extra(column), column.digits) for column in table.extras]
        if seeds:
            entries.append(_number(len(row.runs.records) if row.runs else None, 0))
        opens = not lines or lines[-1].entries[0].text != entries[0].text
        if row.kind != "encoder":
            entries = [replace(e, emphasis="blind") if e.text else e for e in entries]
        lines.append(Line(tuple(entries), row.kind == "blind", opens))
    numbers = [
        *columns,
        *[MEAN_RANK] * ranked,
        *(f"{column} {score.OVER_TWIN}" for column in twins),
        *(column.header for column in table.extras),
        *[SEEDS] * seeds,
    ]
    header = [Entry(name) for name in (MODE, score.SUPERVISION, score.ENCODER, score.IMAGES)]
    header += [Entry(name, number=True) for name in numbers]
    lettered = [(letter, text) for text, letter in notes.items()]
    general = [("", text) for text in _general_notes(table, numbers, lines)]
    return Page(table.heading, tuple(header), tuple(lines), (*lettered, *general))


def _name(row: Row, notes: _Notes) -> Entry:
    name, texts = row.label, []
    if row.kind == "random":
        texts.append(_RANDOM)
        if RANDOM_WEIGHTS not in name:
            name += f" [{RANDOM_WEIGHTS}]"
    texts += [mark for mark in row.marks if mark != RANDOM_WEIGHTS]
    return Entry(name, note=",".join(_lettered(notes, text) for text in texts))


def _score(cell: Cell, column: str, notes: _Notes) -> Entry:
    if cell.value is None:
        return Entry(NOT_AVAILABLE, note=_lettered(notes, cell.reason), number=True)
    return Entry(
        f"{cell.value:.1f}",
        half_width="" if cell.half_width is None else f"{cell.half_width:.1f}",
        lift="" if cell.lift is None or column == _WITHOUT_LIFT else f"{cell.lift:+.1f}",
        emphasis=_EMPHASIS.get(cell.rank, ""),
        note=_lettered(notes, _TIED) if cell.tied and cell.rank != 1 else "",
        number=True,
        tip=""
        if cell.seed_share is None
        else f"{100 * cell.seed_share:.0f}% of the variance comes from seeds",
    )


def _over_twin(gain: Difference | None) -> Entry:
    if gain is None:
        return Entry("–", number=True)
    half = "" if gain.low is None else f"{gain.value - gain.low:.1f}"
    return Entry(f"{gain.value:+.1f}", half_width=half, number=True)


def _number(value: float | None, digits: int) -> Entry:
    return Entry("–" if value is None else f"{value:,.{digits}f}", number=True)


def _general_notes(table: Table, columns: Sequence[str], lines: Sequence[Line]) -> list[str]:
    ranked = [column for column in columns if column in score.AVERAGED]
    ranks = _MEAN_RANK.format("the columns of Avg" if AVERAGE in columns else " and ".join(ranked))
    texts = {"CIDEr": _CIDER, AVERAGE: _AVERAGE, MEAN_RANK: ranks}
    notes = [" ".join([_SCORES, *(text for name, text in texts.items() if name in columns)])]
    notes.append(f"Samples (images): {_sample_counts(table) or 'none'}.")
    if SEEDS in columns:
        notes.append(_SEEDS)
    if any(entry.lift for line in lines for entry in line.entries):
        aside = f" ({_WITHOUT_LIFT} aside)" if _WITHOUT_LIFT in columns else ""
        notes.append(_LIFT.format(aside) + (_MEAN_LIFT if AVERAGE in columns else ""))
    if any(cell.over_twin for row in table.rows for cell in row.cells.values()):
        notes.append(_TWIN)
    notes += [_false_twin(row, other) for row, other in false_twins(table.group.rows)]
    if blind := {row.label for row in table.rows if row.runs is None}:
        meanings = (f"{c.label}, {c.meaning}" for c in CONTROLS.values() if c.label in blind)
        notes.append(_BLIND.format("; ".join(meanings)))
    return notes + [f"{column.header}: {column.meaning}." for column in table.extras]


def _false_twin(row: TableRow, other: TableRow) -> str:
    own, twin = row.records[0].encoder, other.records[0].encoder
    found = "other preprocessing or settings"
    if own.tokens != twin.tokens:
        found = f"{twin.tokens:,} tokens and not {own.tokens:,}"
    return (
        f"{other.label}, {row.mode}, has {found}, so that it is no twin of {row.label}: run "
        f"{twin.name} with the same --weights and settings."
    )


def _sample_counts(table: Table) -> str:
    """Return `VQA Acc 900 (300), OC Acc 300 (300) to 600 (300)`."""
    parts = []
    for column in table.columns:
        cells = [row.cells[column] for row in table.rows if row.runs]
        counts = sorted({(cell.samples, cell.images) for cell in cells if cell.samples})
        if column != AVERAGE and counts:
            ends = dict.fromkeys((counts[0], counts[-1]))
            texts = [f"{samples:,} ({images:,})" for samples, images in ends]
            parts.append(f"{column} {' to '.join(texts)}")
    return ", ".join(parts)


def _lettered(notes: _Notes, text: str) -> str:
    return notes.setdefault(text, _letter(len(notes)))


def _letter(index: int) -> str:
    """Return a, b, ... z, aa, ab, ...

    >>> [_letter(i) for i in (0, 25, 26)]
    ['a', 'z', 'aa']
    """
    first, last = divmod(index, 26)
    return (_letter(first - 1) if first else "") + chr(ord("a") + last)
