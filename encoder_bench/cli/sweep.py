"""`encoder-bench sweep`: many runs, one for each encoder, mode, adapter and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encoder_bench.base.errors import RecipeError, UnknownNameError
from encoder_bench.cli import options
from encoder_bench.cli.run import parse_layers, parse_setting
from encoder_bench.cli.sweep_launch import launch, print_sweep
from encoder_bench.pipeline.plan import DEFAULT_TASKS

EPILOG = (
    "Killed and repeated, a sweep goes on where it was: finished cells are found, interrupted ones "
    "go on from their last checkpoint. `encoder-bench status --watch` in another terminal follows "
    "it; `encoder-bench table` shows what is done so far."
)
_MATRIX, _SHARED, _WHERE, _SLURM = "The matrix", "What all cells share", "Where", "SLURM"
_LAUNCHERS = ("inline", "local", "slurm")


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
    print_sweep(sweep)
    if dry_run or not sweep.missing:
        return
    launch(sweep, launcher, slurm, jobs=jobs, quiet=quiet)


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
