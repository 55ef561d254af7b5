"""`encoder-bench sweep`: many runs, one for each encoder, mode, adapter and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.cli import options
from encoder_bench.cli.sweep_launch import launch, print_sweep

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
    data: options.Data = "scenes",
    train_data: options.TrainData = None,
    tasks: options.Tasks = options.DEFAULT_TASKS,
    limit: options.Limit = None,
    llm: options.LanguageModel = None,
    projector: options.Projector = None,
    visual_tokens: options.VisualTokens = None,
    layer: options.Layer = None,
    resolution: options.Resolution = None,
    steps: options.Steps = None,
    set_: options.Set = None,
    weights: options.WeightsByName = None,
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
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
    dry_run: options.DryRun = False,
    force: options.Force = False,
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
        "tasks": options.listed(tasks),
        "limit": limit,
        "llm": llm,
        "projector": projector,
        "visual_tokens": visual_tokens,
        "layer": options.whole_numbers("--layer", layer) or None,
        "resolution": resolution,
        "steps": steps,
        "settings": options.settings(set_) or None,
        "device": device,
        "trust_remote_code": trust_remote_code,
    }
    cells = make_cells(
        options.listed(encoders),
        options.listed(modes),
        options.whole_numbers("--seeds", seeds),
        options.listed(adapter),
        settings={name: value for name, value in settings.items() if value is not None},
        weights=dict(options.pair("--weights", text) for text in weights or []),
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
        extra=dict(options.pair("--sbatch", text) for text in sbatch or []),
        wait=wait,
    )
    sweep = Sweep.planned(cells, results, force=force)
    print_sweep(sweep)
    if dry_run or not sweep.missing:
        return
    launch(sweep, launcher, slurm, jobs=jobs, quiet=quiet)
