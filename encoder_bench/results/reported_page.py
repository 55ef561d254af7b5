"""Ours against published, laid out for every format.

What belongs here: words and cells; the figures come from `reported.py` and `rank_agreement.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord
from encoder_bench.results.columns import ENCODER, HALF, SETTING
from encoder_bench.results.layout import Cell, Line, Page
from encoder_bench.results.rank_agreement import rank_agreement
from encoder_bench.results.reported import COLUMNS, compare_reported, footnotes, load_reported


def lay_out_comparison(
    records: Iterable[RunRecord], reported: pd.DataFrame | None = None
) -> list[Page]:
    """Return printable tables of ours against published: figures, then agreement of ranks.

    Raises:
        RecordError: no record is of a family that was published.
    """
    known = load_reported() if reported is None else reported
    comparison = compare_reported(records, known)
    if comparison.empty:
        families = ", ".join(sorted(set(known["Family"])))
        raise RecordError(f"no record is of a published encoder's family ({families})")
    agreement = rank_agreement(comparison)
    pages = []
    for setting, part in comparison.groupby(SETTING, sort=False):
        pages.append(_figures_page(str(setting), part, footnotes(known)))
        pages.append(_agreement_page(str(setting), agreement[agreement[SETTING] == setting]))
    return pages


def _figures_page(setting: str, part: pd.DataFrame, notes: Sequence[str]) -> Page:
    header = (Cell(HALF), Cell(ENCODER), *(Cell(column, number=True) for column in COLUMNS))
    lines, previous = [], None
    for (joint, encoder), cells in part.groupby([HALF, ENCODER], sort=False):
        by_column = {str(row["Column"]): row for row in cells.to_dict("records")}
        figures = tuple(_figure(by_column[column]) for column in COLUMNS)
        half = "yes" if joint else "no"
        lines.append(
            Line((Cell(half), Cell(str(encoder)), *figures), blind=False, opens=half != previous)
        )
        previous = half
    general = ("Each cell: ours ± half of its 95% interval / published (difference).", *notes)
    return Page(
        f"Ours and published · {setting}",
        header,
        tuple(lines),
        tuple(("", note) for note in general),
    )


def _figure(row: dict[Any, Any]) -> Cell:
    if pd.isna(row["Ours"]):
        return Cell(f"n/a / {row['Published']:.1f}", number=True)
    width = "" if pd.isna(row["±"]) else f" ±{row['±']:.1f}"
    text = f"{row['Ours']:.1f}{width} / {row['Published']:.1f} ({row['Difference']:+.1f})"
    return Cell(text, number=True)


def _agreement_page(setting: str, agreement: pd.DataFrame) -> Page:
    header = ("Joint Tuning", "Column", "Encoders", "Spearman", "Kendall")
    lines, previous = [], None
    notes: dict[str, None] = {"95% intervals in brackets, through Fisher's z.": None}
    for row in agreement.to_dict("records"):
        half = "yes" if row[HALF] else "no"
        cells = (
            Cell(half),
            Cell(str(row["Column"])),
            Cell(str(row["Encoders"]), number=True),
            Cell(_interval(row, "Spearman"), number=True),
            Cell(_interval(row, "Kendall"), number=True),
        )
        if row["Reason"]:
            notes[f"{row['Column']}, {'joint' if row[HALF] else 'frozen'}: {row['Reason']}."] = None
        lines.append(Line(cells, blind=False, opens=half != previous))
        previous = half
    return Page(
        f"Agreement of ranks · {setting}",
        tuple(Cell(name, number=index > 1) for index, name in enumerate(header)),
        tuple(lines),
        tuple(("", note) for note in notes),
    )


def _interval(row: dict[Any, Any], name: str) -> str:
    if pd.isna(row[name]):
        return "n/a"
    if pd.isna(row[f"{name} low"]):
        return f"{row[name]:.2f}"
    return f"{row[name]:.2f} [{row[f'{name} low']:.2f}, {row[f'{name} high']:.2f}]"
