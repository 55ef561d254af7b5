"""`encoder-bench sweep` and `encoder-bench status`: many runs, and how they stand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encoder_bench.cli import options
from encoder_bench.cli.run import parse_layers, parse_setting
from encoder_bench.errors import RecipeError, UnknownNameError
from encoder_bench.plan import DEFAULT_TASKS

if TYPE_CHECKING:
    from rich.table import Table

    from encoder_bench.progress import Reporter
    from encoder_bench.sweep.cells import Cell
    from encoder_bench.sweep.plan import Sweep
    from encoder_bench.sweep.slurm import SlurmOptions
    from encoder_bench.sweep.status import CellStatus

EPILOG = (
    "Killed and repeated, a sweep goes on where it was: finished cells are found, interrupted ones "
    "go on from their last checkpoint. `encoder-bench status --watch` in another terminal follows "
    "it; `encoder-bench table` shows what is done so far."
)
_MATRIX, _SHARED, _WHERE, _SLURM = "The matrix", "What all cells share", "Where", "SLURM"
_LAUNCHERS = ("inline", "local", "slurm")
_COLOURS = {
    "done": "green",
    "failed": "red",
    "lost": "yellow",
    "running": "cyan",
    "queued": "blue",
    "unfinished": "yellow",
    "damaged": "red",
}
_LOOK_SECONDS, _IDLE_LOOKS = 2.0, 5


def sweep_command(
    encoders: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Encoders, as `run --encoder` takes them.",
            rich_help_panel=_MATRIX,
        ),
    ],
    modes: Annotated[
        str,
        typer.Option(
            metavar="frozen,joint", help="Encoder frozen, tuned, or both.", rich_help_panel=_MATRIX
        ),
    ] = "frozen,joint",
    seeds: Annotated[
        str, typer.Option(metavar="N,...", help="Seeds.", rich_help_panel=_MATRIX)
    ] = "0",
    adapter: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="Adapter recipes or files.", rich_help_panel=_MATRIX),
    ] = "quick",
    data: Annotated[
        str,
        typer.Option(metavar="scenes|coco|DIR", help="Test data.", rich_help_panel=_SHARED),
    ] = "scenes",
    train_data: Annotated[
        str | None,
        typer.Option(
            metavar="scenes|coco|DIR",
            help="Training data, where it is not --data.",
            rich_help_panel=_SHARED,
        ),
    ] = None,
    tasks: Annotated[
        str, typer.Option(metavar="NAME,...", help="Task recipes.", rich_help_panel=_SHARED)
    ] = ",".join(DEFAULT_TASKS),
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Samples a task, at most.", rich_help_panel=_SHARED),
    ] = None,
    llm: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="llm.name", rich_help_panel=_SHARED)
    ] = None,
    projector: Annotated[
        str | None, typer.Option(metavar="NAME", help="projector.name", rich_help_panel=_SHARED)
    ] = None,
    visual_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="projector.visual_tokens: the same for every encoder, so that the comparison is "
            "fair across patch sizes.",
            rich_help_panel=_SHARED,
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(metavar="L[,L]", help="encoder.layer", rich_help_panel=_SHARED)
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="encoder.resolution", rich_help_panel=_SHARED),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Steps of each stage.", rich_help_panel=_SHARED),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other key of the recipe.",
            rich_help_panel=_SHARED,
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="An encoder's checkpoint on disk; repeatable.",
            rich_help_panel=_SHARED,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, mps.", rich_help_panel=_SHARED)
    ] = "auto",
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Let a Hub repository run its own code; recorded.",
            rich_help_panel=_SHARED,
        ),
    ] = False,
    launcher: Annotated[
        str,
        typer.Option(
            metavar="inline|local|slurm",
            help="One after another here; local processes; SLURM jobs.",
            rich_help_panel=_WHERE,
        ),
    ] = "inline",
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="local: processes at a time; else what fits.", rich_help_panel=_WHERE
        ),
    ] = None,
    results: options.Results = Path("results"),
    partition: Annotated[
        str | None, typer.Option(metavar="NAME", help="sbatch's.", rich_help_panel=_SLURM)
    ] = None,
    gpus: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="GPUs a cell; on several it runs through accelerate launch.",
            rich_help_panel=_WHERE,
        ),
    ] = 1,
    cpus: Annotated[
        int, typer.Option(metavar="N", help="CPU cores a cell.", rich_help_panel=_SLURM)
    ] = 4,
    memory: Annotated[
        int | None, typer.Option(metavar="GIB", help="Memory a cell.", rich_help_panel=_SLURM)
    ] = None,
    minutes: Annotated[
        int,
        typer.Option(
            metavar="MIN",
            help="Time limit; a cell that reaches it is queued again and goes on.",
            rich_help_panel=_SLURM,
        ),
    ] = 240,
    at_once: Annotated[
        int, typer.Option(metavar="N", help="Cells of the array at a time.", rich_help_panel=_SLURM)
    ] = 16,
    account: Annotated[
        str | None, typer.Option(metavar="NAME", help="sbatch's.", rich_help_panel=_SLURM)
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Any other option of sbatch; repeatable.",
            rich_help_panel=_SLURM,
        ),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option("--wait/--no-wait", help="Stay until all have ended.", rich_help_panel=_SLURM),
    ] = True,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the plan with its cost; do nothing.", rich_help_panel="Output"
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Run again what is done.", rich_help_panel="Output"),
    ] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Run every encoder in every mode with every seed; one cell that fails stops no other.

    encoder-bench sweep --encoders dinov2-l,clip-l --modes frozen,joint --seeds 0,1,2
    """
    if launcher not in _LAUNCHERS:
        raise UnknownNameError("launcher", launcher, _LAUNCHERS)
    from encoder_bench.sweep.cells import make_cells

    settings = {
        "data": data,
        "training_data": train_data,
        "tasks": _listed(tasks),
        "limit": limit,
        "llm": llm,
        "projector": projector,
        "visual_tokens": visual_tokens,
        "layer": parse_layers(layer),
        "resolution": resolution,
        "steps": steps,
        "settings": dict(parse_setting(text) for text in set_ or []) or None,
        "device": device,
        "trust_remote_code": trust_remote_code,
    }
    cells = make_cells(
        _listed(encoders),
        _listed(modes),
        _whole_numbers("--seeds", seeds),
        _listed(adapter),
        settings={name: value for name, value in settings.items() if value is not None},
        weights=dict(_pair("--weights", text) for text in weights or []),
    )
    from encoder_bench.sweep.plan import Sweep
    from encoder_bench.sweep.slurm import SlurmOptions

    slurm = SlurmOptions(
        partition=partition,
        gpus=gpus,
        cpus=cpus,
        memory_gib=memory,
        minutes=minutes,
        at_once=at_once,
        account=account,
        extra=dict(_pair("--sbatch", text) for text in sbatch or []),
        wait=wait,
    )
    sweep = Sweep.planned(cells, results, force=force)
    _print_sweep(sweep)
    if dry_run or not sweep.missing:
        return
    _launch(sweep, launcher, slurm, jobs=jobs, quiet=quiet)


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


def _launch(
    sweep: Sweep, launcher: str, slurm: SlurmOptions, *, jobs: int | None, quiet: bool
) -> None:
    from encoder_bench.progress import make_reporter
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


def _print_sweep(sweep: Sweep) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("Cell", "State", "Time", "Memory", "Disk"):
        table.add_column(name, justify="left" if name in ("Cell", "State") else "right")
    for entry in sweep.entries:
        colour = _COLOURS.get(entry.status.state, "")
        state = f"[{colour}]{entry.status.state}[/]" if colour else entry.status.state
        table.add_row(entry.cell.name, state, entry.time, entry.memory, entry.disk)
    console = Console()
    console.print(table)
    console.print(sweep.summary(), highlight=False)


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
        colour = _COLOURS.get(state, "")
        table.add_row(Text(name), Text(state, style=colour), Text(run_id), Text(message))
        counts[state] = counts.get(state, 0) + 1
    table.caption = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return table


def _as_json(folder: Path, cell: Cell, status: CellStatus) -> dict[str, Any]:
    return {"id": folder.name, **cell.as_json(), **status.model_dump(mode="json")}


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole_numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in _listed(text)]
    except ValueError:
        raise RecipeError(f"{flag} {text}: give whole numbers, as in 0,1,2") from None


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise RecipeError(f"{flag} {text}: give NAME=VALUE")
    return name, value
