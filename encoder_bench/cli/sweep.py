"""`encoder-bench sweep`: many runs, one for each encoder, mode, adapter and seed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.cli import options
from encoder_bench.cli.printing import grid, print_lines
from encoder_bench.cli.run import warn_of_drawn_scenes
from encoder_bench.cli.status import coloured_state, status_table
from encoder_bench.pipeline.plan import check_places
from encoder_bench.sweep.slurm import SlurmOptions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from encoder_bench.pipeline.estimate import RunEstimate
    from encoder_bench.sweep.jobs import Job

EPILOG = (
    "Example: encoder-bench sweep --encoders dinov2-l,clip-l --modes frozen,joint --seeds 0,1,2. "
    "An interrupted sweep resumes when it is repeated: finished runs are found, interrupted ones "
    "resume from their last checkpoint. `encoder-bench status --watch` in another terminal follows "
    "it; `encoder-bench table` shows what is done so far."
)
_matrix = partial(typer.Option, rich_help_panel="The matrix")
_slurm = partial(typer.Option, rich_help_panel="SLURM")
_LAUNCHERS = ("local", "slurm")

Modes = Annotated[str, _matrix(metavar="frozen,joint", help="Encoder frozen, tuned, or both.")]
Seeds = Annotated[str, _matrix(metavar="N,...", help="Random seeds.")]
Twins = Annotated[
    bool,
    _matrix(
        "--twins",
        help="Each encoder's random twin too: its architecture, fresh weights by the seed.",
    ),
]
Adapters = Annotated[str, _matrix(metavar="NAME,...", help="Adapter recipes or files.")]
Launcher = Annotated[
    str, options.where(metavar="local|slurm", help="Processes of this machine, or SLURM jobs.")
]
Slots = Annotated[
    int | None,
    options.where(
        "--jobs",
        metavar="N",
        help="local: runs at a time; else one per GPU, or what CPU cores and memory allow.",
    ),
]
Gpus = Annotated[
    int,
    options.where(metavar="N", min=0, help="GPUs per run; on several it runs through torchrun."),
]
Partition = Annotated[str | None, _slurm(metavar="NAME", help="SLURM partition.")]
Cpus = Annotated[int, _slurm(metavar="N", help="CPU cores per run.")]
Minutes = Annotated[
    int,
    _slurm(metavar="MIN", help="Time limit; a run that reaches it is queued again and resumes."),
]
AtOnce = Annotated[int, _slurm(metavar="N", help="Runs of the array at a time.")]
Sbatch = Annotated[
    list[str] | None,
    _slurm(
        metavar="KEY=VALUE", help="Any other option of sbatch (mem=64GB, account=NAME); repeatable."
    ),
]
Wait = Annotated[bool, _slurm("--wait/--no-wait", help="Stay until all have ended.")]


def sweep_command(
    encoders: options.Encoders,
    modes: Modes = "frozen,joint",
    seeds: Seeds = "0",
    twins: Twins = False,
    adapter: Adapters = "quick",
    data: options.Data = "scenes",
    train_data: options.TrainData = None,
    mixture: options.Mixture = None,
    tasks: options.Tasks = options.DEFAULT_TASKS,
    limit: options.Limit = None,
    controls: options.Controls = None,
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
    launcher: Launcher = "local",
    slots: Slots = None,
    results: options.Results = options.RESULTS,
    partition: Partition = None,
    gpus: Gpus = 1,
    cpus: Cpus = 4,
    minutes: Minutes = 240,
    at_once: AtOnce = 16,
    sbatch: Sbatch = None,
    wait: Wait = True,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Run every encoder in every mode with every seed; a failed run does not stop the rest."""
    from encoder_bench.sweep.jobs import make_jobs, with_twins

    if launcher not in _LAUNCHERS:
        raise UnknownNameError("launcher", launcher, _LAUNCHERS)
    files = options.weights_by_name(encoders, weights)
    names, files = with_twins(encoders, files) if twins else (encoders, files)
    settings = {
        "data": data, "training_data": train_data, "mixture": options.listed(mixture),
        "tasks": options.listed(tasks), "limit": limit, "controls": controls, "llm": llm,
        "projector": projector, "visual_tokens": visual_tokens, "resolution": resolution,
        "steps": steps, "layer": options.whole_numbers("--layer", layer) or None, "device": device,
        "settings": options.settings(set_) or None, "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    axes = options.listed(modes), options.whole_numbers("--seeds", seeds), options.listed(adapter)
    jobs = make_jobs(names, *axes, settings, files)
    warn_of_drawn_scenes(names, data, QuietReporter())
    slurm = SlurmOptions(partition, gpus, cpus, minutes, at_once, options.pairs("--sbatch", sbatch))
    if (missing := _print_plan(jobs, results, force=force)) and not dry_run:
        _launch(missing, results, launcher, slurm, slots=slots, force=force, wait=wait, quiet=quiet)


def _print_plan(
    jobs: Sequence[Job], results: Path, *, force: bool
) -> list[tuple[Job, RunEstimate]]:
    """Print every job with its state and estimated cost, and return those that are to do."""
    from rich.console import Console

    from encoder_bench.pipeline.estimate import duration_text, estimate_run, size_text
    from encoder_bench.sweep.jobs import job_status

    plans = [job.plan(results) for job in jobs]
    for plan in plans:
        check_places(plan)
    estimates = [estimate_run(plan) for plan in plans]
    states = [job_status(job.folder(results), results, job).state for job in jobs]
    rows = [
        (
            job.name,
            coloured_state(state),
            duration_text(estimate.seconds),
            size_text(estimate.memory_bytes),
            size_text(estimate.disk_bytes),
        )
        for job, state, estimate in zip(jobs, states, estimates, strict=True)
    ]
    Console().print(grid(("Run", "State", "Time", "Memory", "Disk"), rows, left=2))
    skipped = {"running"} if force else {"running", "done"}
    missing = [
        (job, estimate)
        for job, state, estimate in zip(jobs, states, estimates, strict=True)
        if state not in skipped
    ]
    seconds = [estimate.seconds for _, estimate in missing]
    known = [value for value in seconds if value is not None]
    total = duration_text(sum(known) if len(known) == len(seconds) else None)
    elsewhere = f", {states.count('running')} running elsewhere" if "running" in states else ""
    print_lines(
        [
            f"{len(jobs)} runs, {len(missing)} to do{elsewhere}; one after another "
            f"{total} (estimated, to a factor of about three)"
        ]
    )
    return missing


def _launch(
    missing: Sequence[tuple[Job, RunEstimate]],
    results: Path,
    launcher: str,
    slurm: SlurmOptions,
    *,
    slots: int | None,
    force: bool,
    wait: bool,
    quiet: bool,
) -> None:
    """Do jobs, and name those that did not end well."""
    from encoder_bench.sweep.jobs import job_status, write_job
    from encoder_bench.sweep.local import run_local
    from encoder_bench.sweep.slurm import submit, wait_for

    folders = [write_job(job, results) for job, _ in missing]
    if launcher == "slurm":
        submit(folders, results, slurm, force=force)
        if not wait:
            print_lines([f"queued {len(folders)} runs; encoder-bench status --results {results}"])
            return
        ended = wait_for(folders, results)
    else:
        memory = max((estimate.memory_bytes or 0 for _, estimate in missing), default=0)
        ended = run_local(
            folders,
            results,
            slots=slots,
            gpus_per_job=slurm.gpus,
            memory_bytes=memory or None,
            force=force,
        )
    failed = []
    with contextlib.closing(ended), _live_table(folders, results, quiet=quiet) as console:
        for count, folder in enumerate(ended, start=1):
            status = job_status(folder, results)
            line = f"{status.state}: {status.name}"
            if status.state != "done":
                failed.append(f"{line}: {status.message}")
            console.print(
                f"[{count}/{len(folders)}] {line}", markup=False, highlight=False, soft_wrap=True
            )
    for line in failed:
        typer.echo(line, err=True)
    done = len(folders) - len(failed)
    print_lines([f"{done} of {len(folders)} runs done; encoder-bench table --results {results}"])
    if failed:
        raise typer.Exit(1)


@contextlib.contextmanager
def _live_table(folders: Sequence[Path], results: Path, *, quiet: bool) -> Iterator[Console]:
    """Show on a terminal how jobs stand while the block runs; yield where else to print."""
    from rich.console import Console
    from rich.live import Live

    from encoder_bench.sweep.jobs import job_status

    def table() -> Table:
        return status_table(job_status(folder, results) for folder in folders)

    console = Console(stderr=True, quiet=quiet)
    if quiet or not console.is_terminal:
        yield console
        return
    with Live(get_renderable=table, console=console, refresh_per_second=0.5, transient=True):
        yield console
