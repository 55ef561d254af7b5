"""What commands print: plain lines and borderless tables, through Rich."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def grid(
    columns: Sequence[str],
    rows: Iterable[Sequence[RenderableType]],
    *,
    left: int = 1,
    title: str | None = None,
) -> Table:
    """Return a borderless table; the first `left` columns are text, the others numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        justify = "left" if index < left else "right"
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    return table


def print_lines(lines: Iterable[str]) -> None:
    """Print each line as it is, without markup or wrapping."""
    from rich.console import Console

    console = Console()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
