"""`encoder-bench status`: how runs stand, those of sweeps and single ones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encoder_bench.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from encoder_bench.sweep.cells import Cell
    from encoder_bench.sweep.status import CellStatus

STATE_COLOURS = {
    "done": "green",
    "failed": "red",
    "lost": "yellow",
    "running": "cyan",
    "queued": "blue",
    "unfinished": "yellow",
    "damaged": "red",
}
"""State of a cell -> the colour that it is printed in."""
_LOOK_SECONDS, _IDLE_LOOKS = 2.0, 5


def status_command(
    results: options.Results = Path("results"),
    watch: Annotated[
        bool, typer.Option("--watch", help="Again every two seconds, until all have ended.")
    ] = False,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show how runs stand: done, running, queued, failed with the last line.

    Cells of sweeps tell their progress; runs of `encoder-bench run` are done or unfinished.
    """
    from rich.console import Console
    from rich.live import Live

    from encoder_bench.sweep.status import read_all

    cells = read_all(results)
    if json_output:
        typer.echo(json.dumps([_as_json(*entry) for entry in cells], indent=1))
        return
    console = Console()
    grid = _status_table(results, cells)
    if not grid.row_count:
        console.print(f"{results}: no runs here yet; `encoder-bench run` or `sweep` makes some")
        return
    if not watch:
        console.print(grid)
        return
    idle = 0
    with Live(grid, console=console, auto_refresh=False) as live:
        while idle < _IDLE_LOOKS:
            time.sleep(_LOOK_SECONDS)
            cells = read_all(results)
            live.update(_status_table(results, cells), refresh=True)
            states = [status.state for *_, status in cells]
            if all(state in ("done", "failed") for state in states):
                return
            # Between two cells of an inline sweep none is running for a moment.
            idle = 0 if {"running", "queued"} & set(states) else idle + 1


def _status_table(results: Path, cells: list[tuple[Path, Cell, CellStatus]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from encoder_bench.sweep.single_runs import single_runs

    table = Table(box=None, header_style="bold")
    for name in ("Run", "State", "Id", "Last line"):
        table.add_column(name)
    rows: list[tuple[str, str, str, str]] = [
        (cell.name, status.state, status.run_id or "", status.message or status.ended or "")
        for _, cell, status in cells
    ]
    of_sweeps = {status.run_id or "" for *_, status in cells}
    rows += [(r.name, r.state, r.run_id, r.message) for r in single_runs(results, of_sweeps)]
    counts: dict[str, int] = {}
    for name, state, run_id, message in rows:
        colour = STATE_COLOURS.get(state, "")
        table.add_row(Text(name), Text(state, style=colour), Text(run_id), Text(message))
        counts[state] = counts.get(state, 0) + 1
    table.caption = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return table


def _as_json(folder: Path, cell: Cell, status: CellStatus) -> dict[str, Any]:
    return {"id": folder.name, **cell.as_json(), **status.model_dump(mode="json")}
