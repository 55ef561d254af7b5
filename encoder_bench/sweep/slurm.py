"""Cells as an array of SLURM jobs: queued, waited for, requeued after a preemption.

What belongs here: talking to the scheduler through submitit and `squeue`. How a cell stands is read
from its status file, never from the scheduler's memory alone.
"""

from __future__ import annotations

import getpass
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import EncoderBenchError, MissingDependencyError
from encoder_bench.base.files import write_text
from encoder_bench.sweep.launchers import ENDED, OnEnd, close_silent, log_folder, text_of
from encoder_bench.sweep.status import read_status, write_status
from encoder_bench.sweep.worker import CellJob

_POLL_SECONDS = 4.0
_FILE_DELAY_SECONDS = 30.0
"""How long a shared file system may take to show what a node wrote."""


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """What a SLURM job asks for.

    Attributes:
        partition: None for the cluster's default.
        gpus: GPUs a cell, which trains on them together through `accelerate launch`.
        cpus: CPU cores a cell.
        memory_gib: main memory a cell; None for the cluster's default.
        minutes: time limit; a cell that reaches it is queued again and goes on.
        at_once: at most so many cells of the array at the same time.
        account: to be charged.
        extra: any other `sbatch` option, as `{"constraint": "a100"}`.
        wait: stay until all cells have ended.
    """

    partition: str | None = None
    gpus: int = 1
    cpus: int = 4
    memory_gib: int | None = None
    minutes: int = 240
    at_once: int = 16
    account: str | None = None
    extra: dict[str, str] | None = None
    wait: bool = True


def run_slurm(
    cells: Sequence[Path],
    results: Path,
    options: SlurmOptions,
    *,
    force: bool,
    on_start: OnEnd,
    on_end: OnEnd,
) -> None:
    """Queue the cells as one array of SLURM jobs, and wait for them unless told not to.

    Cells that an earlier, interrupted sweep queued and that still stand in the queue are waited for
    instead of being queued twice.

    Args:
        cells: folders of the cells.
        results: the results folder, which every node must see under the same path.
        options: what a job asks for.
        force: do them again though they are done.
        on_start: called with a cell's folder once it is queued.
        on_end: called with a cell's folder once it has ended, well or not.

    Raises:
        MissingDependencyError: there is no SLURM on this machine.
        EncoderBenchError: `sbatch` refuses the options; its own words are passed on.
    """
    import submitit

    if submitit.SlurmExecutor.affinity() < 0:
        raise MissingDependencyError(
            "--launcher slurm: no srun on this machine; run it on a login node, or use "
            "--launcher local"
        )
    executor = submitit.SlurmExecutor(folder=log_folder(results), max_num_timeout=100)
    executor.update_parameters(**_slurm_parameters(options))
    standing = _squeue()
    waited = {folder: job for folder in cells if (job := _job_of(folder, results)) in standing}
    new = [folder for folder in cells if folder not in waited]
    pending: dict[Path, str | None] = dict(waited)
    if new:
        pending |= _submit_array(executor, new, results, options, force=force)
    for folder in pending:
        on_start(folder)
    if options.wait:
        _wait_for_slurm(pending, results, on_end)


def _wait_for_slurm(pending: dict[Path, str | None], results: Path, on_end: OnEnd) -> None:
    """Return once every cell has ended, by its own word or by leaving the queue without one."""
    gone_since: dict[Path, float] = {}
    while pending:
        time.sleep(_POLL_SECONDS)
        standing = _squeue()
        for folder, job in list(pending.items()):
            if job in standing:
                gone_since.pop(folder, None)
            else:
                gone_since.setdefault(folder, time.monotonic())
            ended = read_status(folder, results).state in ENDED
            waited = time.monotonic() - gone_since.get(folder, time.monotonic())
            if ended or waited > _FILE_DELAY_SECONDS:
                error = log_folder(results).parent / str(job) / f"{job}_0_log.err"
                close_silent(folder, results, text_of(error))
                del pending[folder]
                on_end(folder)


def _squeue() -> set[str]:
    """Return the ids of this user's jobs that wait or run; `sacct` would need an accounting store.

    Raises:
        EncoderBenchError: the scheduler does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise EncoderBenchError(
            f"--launcher slurm: squeue fails: {answer.stderr.strip()}; queued cells go on, and the "
            "same command waits for them"
        )
    return set(answer.stdout.split())


def _submit_array(
    executor: Any, cells: Sequence[Path], results: Path, options: SlurmOptions, *, force: bool
) -> dict[Path, str]:
    """Queue cells as one array. From then on only the jobs themselves write the cells' states."""
    from submitit.core.utils import FailedJobError

    before = {folder: read_status(folder, results) for folder in cells}
    for folder, status in before.items():
        write_status(folder, status.model_copy(update={"state": "queued", "message": ""}))
    try:
        with executor.batch():
            jobs = [
                executor.submit(CellJob(f, results, force, options.cpus, max(1, options.gpus)))
                for f in cells
            ]
    except FailedJobError as error:
        for folder, status in before.items():
            write_status(folder, status)
        raise EncoderBenchError(f"--launcher slurm: sbatch refused: {error}") from error
    ids = {folder: str(job.job_id) for folder, job in zip(cells, jobs, strict=True)}
    for folder, job in ids.items():
        write_text(folder / "job.txt", job + "\n")
    return ids


def _job_of(folder: Path, results: Path) -> str | None:
    """Return the job that an earlier sweep queued for a cell that has not ended."""
    ended = read_status(folder, results).state in ENDED
    return None if ended else text_of(folder / "job.txt").strip() or None


def _slurm_parameters(options: SlurmOptions) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "job_name": "encoder-bench",
        "time": options.minutes,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": options.cpus,
        "array_parallelism": options.at_once,
        "signal_delay_s": 60,
        "additional_parameters": {"requeue": True, **(options.extra or {})},
        "partition": options.partition,
        "account": options.account,
        "gpus_per_node": options.gpus or None,
        "mem": f"{options.memory_gib}GB" if options.memory_gib else None,
    }
    return {name: value for name, value in parameters.items() if value is not None}
