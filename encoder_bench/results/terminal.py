"""The table on a terminal, through Rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from encoder_bench.base.record import RunRecord
from encoder_bench.results.columns import IMAGES, SUPERVISION
from encoder_bench.results.layout import Cell, Page, lay_out
from encoder_bench.results.table import table
from encoder_bench.results.ties import Ties

_WIDE, _ROOMY = 150, 105
_ON_WIDE_ONLY = frozenset({SUPERVISION, IMAGES})
_STYLES = {"best": "bold", "second": "underline", "": ""}


def print_table(
    records: Sequence[RunRecord],
    console: Console,
    *,
    extra: Sequence[str] = (),
    ties: Ties | None = None,
) -> None:
    """Print the comparison table of records, with its footnotes.

    Raises:
        UnknownNameError: an optional column that does not exist.
    """
    for page in lay_out(table(records, extra=extra, ties=ties)):
        print_page(page, console)


def print_page(page: Page, console: Console) -> None:
    """Print one laid-out table and its footnotes.

    On a narrow terminal the columns that a row's name nearly tells are left out.
    """
    narrow = console.width < _WIDE
    grid = Table(
        title=Text(page.heading),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if narrow else box.HEAVY_HEAD,
        padding=(0, 0) if narrow else (0, 1),
    )
    hidden = _ON_WIDE_ONLY if console.width < _ROOMY else frozenset()
    shown = [index for index, cell in enumerate(page.header) if cell.text not in hidden]
    for cell in (page.header[index] for index in shown):
        grid.add_column(
            Text(cell.text), justify="right" if cell.number else "left", overflow="fold"
        )
    for index, line in enumerate(page.lines):
        if line.opens and index:
            grid.add_section()
        cells = (_text(line.cells[column]) for column in shown)
        grid.add_row(*cells, style="italic" if line.blind else "")
    console.print(grid)
    for letter, text in page.footnotes:
        mark = f"[{letter}] " if letter else ""
        console.print(mark + text, style="dim", markup=False, highlight=False)
    console.print()


def _text(cell: Cell) -> Text:
    text = Text(cell.text, style=_STYLES[cell.emphasis])
    if cell.half_width:
        text.append(f" ±{cell.half_width}", style="not bold not underline dim")
    if cell.note:
        text.append(f" [{cell.note}]", style="not bold not underline dim")
    if cell.lift:
        text.append(f"\n{cell.lift}", style="not bold not underline dim")
    return text
