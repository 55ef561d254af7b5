"""Borderless tables, through Rich; plain lines are printed by `typer.echo`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def grid(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    left: int = 1,
    title: str | None = None,
) -> Table:
    """Return a borderless table; the first `left` columns are text, the others numbers.

    Cells are taken as they are: neither markup nor emoji codes are read in them.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def print_grid(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    left: int = 1,
    title: str | None = None,
) -> None:
    """Print what `grid` returns."""
    from rich.console import Console

    Console().print(grid(columns, rows, left=left, title=title))
