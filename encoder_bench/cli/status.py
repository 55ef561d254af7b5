"""`encoder-bench status`: how runs stand, those of sweeps and single ones."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from encoder_bench.cli import options
from encoder_bench.cli.printing import grid, print_lines

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from encoder_bench.sweep.jobs import RunStatus

_COLOURS = {
    "done": "green",
    "failed": "red",
    "running": "cyan",
    "queued": "blue",
    "interrupted": "yellow",
    "damaged": "red",
}
_POLL_SECONDS, _IDLE_POLLS = 2.0, 5


def status_command(
    results: options.Results = options.RESULTS,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every two seconds until all runs have ended.")
    ] = False,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show the state of runs: done, running, queued, interrupted or failed, with the last line."""
    from rich.live import Live

    from encoder_bench.sweep.jobs import all_runs

    runs = all_runs(results)
    if json_output:
        typer.echo(json.dumps([dataclasses.asdict(run) for run in runs], indent=1))
        return
    if not runs:
        print_lines([f"{results}: no runs here yet; `encoder-bench run` or `sweep` makes some"])
        return
    idle = 0 if watch else _IDLE_POLLS
    with Live(status_table(runs), auto_refresh=False) as live:
        while idle < _IDLE_POLLS and not all(run.ended for run in runs):
            time.sleep(_POLL_SECONDS)
            runs = all_runs(results)
            live.update(status_table(runs), refresh=True)
            # Between two runs of a sweep none is running for a moment.
            idle = 0 if any(run.state in ("running", "queued") for run in runs) else idle + 1


def status_table(runs: Iterable[RunStatus]) -> Table:
    """Return a table of runs with their state, and how many there are of each."""
    from rich.text import Text

    shown = list(runs)
    table = grid(
        ("Run", "State", "Id", "Last line"),
        [(Text(r.name), coloured_state(r.state), Text(r.run_id), Text(r.message)) for r in shown],
        left=4,
    )
    counts = Counter(run.state for run in shown)
    table.caption = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return table


def coloured_state(state: str) -> Text:
    """Return a run's state in its colour."""
    from rich.text import Text

    return Text(state, style=_COLOURS.get(state, ""))
