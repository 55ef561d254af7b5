"""Jobs as an array of SLURM jobs, through submitit: queued, waited for, requeued if preempted."""

import getpass
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import EncoderBenchError, MissingDependencyError, needs_extra
from encoder_bench.base.files import write_text
from encoder_bench.sweep.jobs import job_status, text_of
from encoder_bench.sweep.local import INTERRUPTED, close_job, start_job, stop_job

_POLL_SECONDS = 4.0
_FILE_DELAY_SECONDS = 30.0
"""How long a shared file system may take to show what a node wrote."""


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """What a job asks SLURM for.

    Attributes:
        minutes: time limit; a job that reaches it is queued again and resumes.
        at_once: how many jobs of the array may run at the same time.
        extra: any other `sbatch` option, as `{"constraint": "a100"}`.
    """

    partition: str | None = None
    gpus: int = 1
    cpus: int = 4
    minutes: int = 240
    at_once: int = 16
    extra: Mapping[str, str] = field(default_factory=dict)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of submitit's executor."""
        return {
            "job_name": "encoder-bench",
            "time": self.minutes,
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": self.cpus,
            "array_parallelism": self.at_once,
            "signal_delay_s": 60,
            "additional_parameters": {"requeue": True, **self.extra},
            **({"partition": self.partition} if self.partition else {}),
            **({"gpus_per_node": self.gpus} if self.gpus else {}),
        }


@dataclass(frozen=True)
class SlurmJob:
    """What submitit sends to a node; a preempted one is queued again and resumes."""

    folder: Path
    results: Path
    options: SlurmOptions
    force: bool

    def __call__(self) -> None:
        """Do the job in processes of its own, and wait for them."""
        preempted = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: preempted.set())
        process = start_job(
            self.folder,
            self.results,
            processes=max(1, self.options.gpus),
            threads=self.options.cpus,
            force=self.force,
        )
        try:
            code = process.wait()
        finally:
            stop_job(process)
        if code not in INTERRUPTED and not preempted.is_set():
            close_job(self.folder, self.results, f"its process ended with status {code}")

    def checkpoint(self) -> Any:
        """Return what submitit queues at the time limit: this job, which resumes by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, force=False))


def submit(folders: Sequence[Path], results: Path, options: SlurmOptions, *, force: bool) -> None:
    """Queue jobs as one array of SLURM jobs; those that are in the queue already stay.

    Every node must see the results folder under the same path.

    Raises:
        MissingDependencyError: there is no SLURM on this machine.
        EncoderBenchError: `sbatch` refuses the options, with its own message.
    """
    with needs_extra("slurm", "--launcher slurm"):
        import submitit
        from submitit.core.utils import FailedJobError

    if submitit.SlurmExecutor.affinity() < 0:
        raise MissingDependencyError(
            "--launcher slurm: no srun on this machine; run it on a login node, or use "
            "--launcher local"
        )
    queue = _queue()
    new = [folder.resolve() for folder in folders if text_of(folder / "slurm.txt") not in queue]
    if not new:
        return
    logs = results.resolve() / "sweep" / "logs" / "%j"
    executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=100)
    executor.update_parameters(**options.parameters())
    try:
        with executor.batch():
            jobs = [
                executor.submit(SlurmJob(folder, results.resolve(), options, force))
                for folder in new
            ]
    except FailedJobError as error:
        raise EncoderBenchError(f"--launcher slurm: sbatch refused: {error}") from error
    for folder, job in zip(new, jobs, strict=True):
        (folder / "error.txt").unlink(missing_ok=True)
        write_text(folder / "slurm.txt", f"{job.job_id}\n")


def wait_for(folders: Sequence[Path], results: Path) -> Generator[Path, None, None]:
    """Yield each queued job's folder once it has ended, by its own word or by leaving the queue.

    Raises:
        EncoderBenchError: the scheduler does not answer.
    """
    pending = {folder: text_of(folder / "slurm.txt") for folder in folders}
    left: dict[Path, float] = {}
    while pending:
        time.sleep(_POLL_SECONDS)
        queue, now = _queue(), time.monotonic()
        for folder, number in list(pending.items()):
            if number in queue:
                left.pop(folder, None)
                continue
            ended = job_status(folder, results).ended
            if ended or now - left.setdefault(folder, now) > _FILE_DELAY_SECONDS:
                close_job(folder, results, "it left the SLURM queue")
                del pending[folder]
                yield folder


def _queue() -> set[str]:
    """Return the ids of this user's jobs in the queue; `sacct` would need an accounting store."""
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise EncoderBenchError(
            f"--launcher slurm: squeue fails: {answer.stderr.strip()}; queued jobs continue, and "
            "the same command waits for them"
        )
    return set(answer.stdout.split())
