"""`encoder-bench sweep | status`: many runs, and how runs stand."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from encoder_bench.base.errors import RecipeError
from encoder_bench.cli import options
from encoder_bench.cli.printing import grid, print_grid
from encoder_bench.cli.run import warn_of_drawn_scenes
from encoder_bench.pipeline.plan import check_places
from encoder_bench.sweep.jobs import (
    Job,
    RunStatus,
    all_runs,
    job_status,
    make_jobs,
    with_twins,
    write_job,
)
from encoder_bench.sweep.launch import SlurmOptions, known_queue, run_local, submit, wait_for

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from encoder_bench.pipeline.estimate import RunEstimate

EPILOG = (
    "Example: encoder-bench sweep --encoders dinov2-l,clip-l --modes frozen,joint --seeds 0,1,2. "
    "An interrupted sweep resumes when it is repeated: finished runs are found, interrupted ones "
    "resume from their last checkpoint. `encoder-bench status --watch` in another terminal follows "
    "it; `encoder-bench table` shows what is done so far."
)
_matrix = partial(typer.Option, rich_help_panel="The matrix")
_slurm = partial(typer.Option, rich_help_panel="SLURM")
_COLOURS = {
    "done": "green",
    "failed": "red",
    "running": "cyan",
    "queued": "blue",
    "interrupted": "yellow",
    "damaged": "red",
}
_POLL_SECONDS, _IDLE_POLLS = 2.0, 5

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
    Literal["local", "slurm"], options.where(help="Processes of this machine, or SLURM jobs.")
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
    warn_of_drawn_scenes(names, data)
    extra = options.pairs("--sbatch", sbatch, "mem=64GB")
    slurm = SlurmOptions(partition, gpus, cpus, minutes, at_once, extra)
    if (missing := _print_plan(jobs, results, force=force)) and not dry_run:
        _launch(missing, results, launcher, slurm, slots=slots, force=force, wait=wait, quiet=quiet)


def _print_plan(
    jobs: Sequence[Job], results: Path, *, force: bool
) -> list[tuple[Job, RunEstimate]]:
    """Print every job with its state and estimated cost, and return those that are to do."""
    from encoder_bench.pipeline.estimate import duration_text, estimate_run, size_text

    skipped = {"running"} if force else {"running", "done"}
    missing: list[tuple[Job, RunEstimate]] = []
    rows: list[tuple[str | Text, ...]] = []
    running = 0
    seen: dict[Path, Job] = {}
    for job in jobs:
        plan = job.plan(results)
        check_places(plan)
        folder = job.folder(results)
        if (other := seen.setdefault(folder, job)) is not job:
            raise RecipeError(
                f"{other.name} ({other.adapter}) and {job.name} ({job.adapter}) differ in nothing "
                "that could change a score; leave one out"
            )
        estimate = estimate_run(plan)
        state = job_status(folder, results, job).state
        if state == "queued":
            state = job_status(folder, results, job, queue=known_queue()).state
        sizes = map(size_text, (estimate.memory_bytes, estimate.disk_bytes))
        rows.append((job.name, _coloured(state), duration_text(estimate.seconds), *sizes))
        if state not in skipped:
            missing.append((job, estimate))
        running += state == "running"
    print_grid(("Run", "State", "Time", "Memory", "Disk"), rows, left=2)
    seconds = [each.seconds for _, each in missing if each.seconds is not None]
    total = duration_text(sum(seconds) if len(seconds) == len(missing) else None)
    elsewhere = f", {running} running elsewhere" if running else ""
    typer.echo(
        f"{len(jobs)} runs, {len(missing)} to do{elsewhere}; one after another "
        f"{total} (estimated, to a factor of about three)"
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
    folders = [write_job(job, results) for job, _ in missing]
    if launcher == "slurm":
        submit(folders, results, slurm, force=force)
        if not wait:
            typer.echo(f"queued {len(folders)} runs; encoder-bench status --results {results}")
            return
        ended = wait_for(folders, results)
    else:
        ended = run_local(
            folders, results, slots=slots, gpus_per_job=slurm.gpus, force=force,
            memory_bytes=max(estimate.memory_bytes or 0 for _, estimate in missing),
        )  # fmt: skip
    failed = []
    with contextlib.closing(ended), _live_table(folders, results, quiet=quiet) as console:
        for count, folder in enumerate(ended, start=1):
            status = job_status(folder, results)
            line = f"{status.state}: {status.name}"
            if status.state != "done":
                failed.append(f"{line}: {status.message}")
            numbered = f"[{count}/{len(folders)}] {line}"
            console.print(numbered, markup=False, emoji=False, highlight=False, soft_wrap=True)
    for line in failed:
        typer.echo(line, err=True)
    done = len(folders) - len(failed)
    typer.echo(f"{done} of {len(folders)} runs done; encoder-bench table --results {results}")
    if failed:
        raise typer.Exit(1)


@contextlib.contextmanager
def _live_table(folders: Sequence[Path], results: Path, *, quiet: bool) -> Iterator[Console]:
    """Show on a terminal how jobs stand while the block runs; yield where else to print."""
    from rich.console import Console
    from rich.live import Live

    def table() -> Table:
        return _status_table(job_status(folder, results) for folder in folders)

    console = Console(stderr=True, quiet=quiet)
    if quiet or not console.is_terminal:
        yield console
        return
    with Live(get_renderable=table, console=console, refresh_per_second=0.5, transient=True):
        yield console


def status_command(
    results: options.Results = options.RESULTS,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every two seconds until all runs have ended.")
    ] = False,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show each run's state and its last line.

    It is done, running, queued, planned, interrupted, failed or damaged.
    """
    from rich.live import Live

    runs = _runs(results)
    if json_output:
        typer.echo(json.dumps(runs, indent=1, default=dataclasses.asdict))
        return
    if not runs:
        typer.echo(f"{results}: no runs here yet; `encoder-bench run` or `sweep` makes some")
        return
    idle = 0 if watch else _IDLE_POLLS
    with Live(_status_table(runs), auto_refresh=False) as live:
        while idle < _IDLE_POLLS and not all(run.ended for run in runs):
            time.sleep(_POLL_SECONDS)
            runs = _runs(results)
            live.update(_status_table(runs), refresh=True)
            # Between two runs of a sweep none is running for a moment.
            idle = 0 if any(run.state in ("running", "queued") for run in runs) else idle + 1


def _runs(results: Path) -> list[RunStatus]:
    """Return all runs; SLURM is asked only where one of them should be in its queue."""
    runs = all_runs(results)
    if any(run.state == "queued" for run in runs):
        return all_runs(results, queue=known_queue())
    return runs


def _status_table(runs: Iterable[RunStatus]) -> Table:
    """Return a table of runs with their state, and how many there are of each."""
    shown = list(runs)
    rows = [(run.name, _coloured(run.state), run.run_id, run.message) for run in shown]
    table = grid(("Run", "State", "Id", "Last line"), rows, left=4)
    counts = Counter(run.state for run in shown)
    table.caption = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return table


def _coloured(state: str) -> Text:
    from rich.text import Text

    return Text(state, style=_COLOURS.get(state, ""))
