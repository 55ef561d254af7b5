"""Printable tables on a terminal, through Rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from encoder_bench.base.record import RunRecord
from encoder_bench.results.columns import IMAGES, SUPERVISION
from encoder_bench.results.page import Entry, Page, table_page
from encoder_bench.results.table import build_tables

_WIDE, _MEDIUM = 150, 105
_WIDE_ONLY = frozenset({SUPERVISION, IMAGES})
_STYLES = {"best": "bold", "second": "underline", "blind": "italic", "": ""}
_SMALL = "not bold not underline dim"


def print_table(records: Sequence[RunRecord], console: Console) -> None:
    """Print the comparison table of records, with its footnotes."""
    for table in build_tables(records):
        print_page(table_page(table), console)


def print_page(page: Page, console: Console) -> None:
    """Print one table and its footnotes; a narrow terminal lacks columns of little news."""
    narrow = console.width < _WIDE
    grid = Grid(
        title=Text(page.heading),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if narrow else box.HEAVY_HEAD,
        padding=(0, 0) if narrow else (0, 1),
    )
    hidden = _WIDE_ONLY if console.width < _MEDIUM else frozenset()
    shown = [place for place, entry in enumerate(page.header) if entry.text not in hidden]
    for entry in (page.header[place] for place in shown):
        grid.add_column(
            Text(entry.text), justify="right" if entry.number else "left", overflow="fold"
        )
    for line in page.lines:
        if line.opens:
            grid.add_section()
        grid.add_row(*(_text(line.entries[place]) for place in shown))
    console.print(grid)
    for letter, text in page.footnotes:
        mark = f"[{letter}] " if letter else ""
        console.print(mark + text, style="dim", markup=False, highlight=False)
    console.print()


def _text(entry: Entry) -> Text:
    text = Text(entry.text, style=_STYLES[entry.emphasis])
    text.append(f" ±{entry.half_width}" if entry.half_width else "", style=_SMALL)
    text.append(f" [{entry.note}]" if entry.note else "", style=_SMALL)
    text.append(f"\n{entry.lift}" if entry.lift else "", style=_SMALL)
    return text
