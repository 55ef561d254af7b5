"""What `encoder-bench sweep` prints of its plan, and how it launches what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from encoder_bench.base.errors import RecipeError
from encoder_bench.cli.status import STATE_COLOURS

if TYPE_CHECKING:
    from encoder_bench.base.progress import Reporter
    from encoder_bench.sweep.plan import Sweep
    from encoder_bench.sweep.slurm import SlurmOptions


def print_sweep(sweep: Sweep) -> None:
    """Print the cells with their state and estimated cost, and the sum of it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("Cell", "State", "Time", "Memory", "Disk"):
        table.add_column(name, justify="left" if name in ("Cell", "State") else "right")
    for entry in sweep.entries:
        colour = STATE_COLOURS.get(entry.status.state, "")
        state = f"[{colour}]{entry.status.state}[/]" if colour else entry.status.state
        table.add_row(entry.cell.name, state, entry.time, entry.memory, entry.disk)
    console = Console()
    console.print(table)
    console.print(sweep.summary(), highlight=False)


def launch(
    sweep: Sweep, launcher: str, slurm: SlurmOptions, *, jobs: int | None, quiet: bool
) -> None:
    """Run the cells of a sweep that are not done, and name those that did not end well.

    Args:
        sweep: planned.
        launcher: `inline`, `local` or `slurm`.
        slurm: what the cells ask of SLURM; its GPUs a cell hold for every launcher.
        jobs: most local processes at a time; None for what fits.
        quiet: print warnings only.

    Raises:
        RecipeError: more GPUs a cell than there are.
        Exit: 1, where a cell is not done.
    """
    from encoder_bench.base.progress import make_reporter
    from encoder_bench.sweep.slurm import run_slurm

    sweep.write()
    reporter = make_reporter(quiet=quiet)
    total, ended = len(sweep.missing), 0

    def on_start(folder: Path) -> None:
        reporter.note(f"start {sweep.name_of(folder)}")

    def on_end(folder: Path) -> None:
        nonlocal ended
        ended += 1
        status = sweep.status_of(folder)
        reason = f": {status.message}" if status.state != "done" else ""
        reporter.note(f"{status.state} [{ended}/{total}] {sweep.name_of(folder)}{reason}")

    shared: dict[str, Any] = {"force": sweep.force, "on_start": on_start, "on_end": on_end}
    if launcher == "slurm":
        run_slurm(sweep.missing, sweep.results, slurm, **shared)
        if not slurm.wait:
            reporter.note(f"queued {total} cells; encoder-bench status --results {sweep.results}")
            return
    else:
        _launch_here(sweep, launcher, slurm.gpus, jobs, reporter, shared)
    failed = [folder for folder in sweep.missing if sweep.status_of(folder).state != "done"]
    for folder in failed:
        status = sweep.status_of(folder)
        typer.echo(f"{status.state}: {sweep.name_of(folder)}: {status.message}", err=True)
    typer.echo(f"{total - len(failed)} of {total} cells done; encoder-bench table --results "
               f"{sweep.results}")  # fmt: skip
    if failed:
        raise typer.Exit(1)


def _launch_here(
    sweep: Sweep,
    launcher: str,
    gpus_a_cell: int,
    jobs: int | None,
    reporter: Reporter,
    shared: dict[str, Any],
) -> None:
    """Do the cells on this machine, in this process or in local ones."""
    from encoder_bench.sweep import launchers

    visible = launchers.visible_gpus()
    a_cell = max(1, gpus_a_cell)
    if a_cell > 1 and len(visible) < a_cell:
        raise RecipeError(f"--gpus {a_cell}: this machine has {len(visible)} GPUs")
    if launcher == "inline":
        launchers.run_inline(sweep.missing, sweep.results, reporter, processes=a_cell, **shared)
        return
    slots = launchers.local_slots(
        jobs, len(sweep.missing), sweep.largest_memory, len(visible), a_cell
    )
    reporter.note(f"{slots} at a time")
    launchers.run_local(
        sweep.missing, sweep.results, jobs=slots, gpus=visible, gpus_a_cell=a_cell, **shared
    )
