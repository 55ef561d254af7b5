"""Where jobs are done: in processes of this machine, or as an array of SLURM jobs.

On this machine one job runs per GPU, or as many as cores and memory allow. SLURM jobs are queued
through submitit, waited for, and queued again if preempted.
"""

import contextlib
import functools
import getpass
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import (
    EncoderBenchError,
    MissingDependencyError,
    RecipeError,
    needs_extra,
)
from encoder_bench.base.files import write_text
from encoder_bench.base.limits import available_memory, usable_cores
from encoder_bench.sweep.jobs import job_status, text_of

INTERRUPTED = {-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGUSR2}
"""Exit statuses of a process that was stopped from outside and resumes when it is run again."""
_POLL_SECONDS, _QUEUE_POLL_SECONDS = 0.5, 4.0
_MAX_ARRAY = 1000  # of SLURM's MaxArraySize, which is 1001 where nothing else is set
_GPU = re.compile(r"\d+|(GPU|MIG)-.+")
_FILE_DELAY_SECONDS = 30.0
"""How long a shared file system may take to show what a node wrote."""


def run_local(
    folders: Sequence[Path],
    results: Path,
    *,
    slots: int | None,
    gpus_per_job: int,
    memory_bytes: int,
    force: bool,
) -> Generator[Path, None, None]:
    """Do jobs, `slots` at a time (see `local_slots`); yield a job's folder when it has ended.

    Each job trains on GPUs of its own, as far as there are as many; CPU threads are shared evenly.
    Where the caller stops, the processes stop too; what they had done is kept.

    Raises:
        RecipeError: more GPUs per job than there are.
    """
    import torch

    gpus, per_job = visible_gpus(), max(1, gpus_per_job)
    if per_job > max(1, len(gpus)):
        raise RecipeError(f"--gpus {per_job}: this machine has {len(gpus)} GPUs")
    number = len(gpus) or int(torch.backends.mps.is_available())
    free = list(range(local_slots(slots, len(folders), memory_bytes, number, per_job)))
    threads = max(1, usable_cores() // len(free))
    waiting = list(folders)
    running: dict[int, tuple[Path, subprocess.Popen[bytes]]] = {}
    signals: list[int] = []
    before = _note_signals(signals)
    try:
        while waiting or running:
            while waiting and free:
                slot, folder = free.pop(), waiting.pop(0)
                own = gpus_of(slot, gpus, per_job)
                process = start_job(
                    folder, results, processes=per_job, threads=threads, gpus=own, force=force
                )
                running[slot] = folder, process
            time.sleep(_POLL_SECONDS)
            if signals:
                raise _end(signals[0])
            for slot, (folder, process) in list(running.items()):
                if (code := process.poll()) is not None:
                    if code not in INTERRUPTED:
                        close_job(folder, results, f"its process ended with status {code}")
                    del running[slot]
                    free.append(slot)
                    yield folder
    finally:
        for _, process in running.values():
            stop_job(process)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _note_signals(noted: list[int]) -> dict[signal.Signals, Any]:
    """Note what would end this process at once; return the handlers before.

    A job has a session of its own, so that nothing else ends it, and an exception could come
    before a job that has just begun is known. Handlers are the main thread's to set.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    usual = (signal.SIG_DFL, signal.default_int_handler)  # nohup ignores SIGHUP
    ending = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    wanted = [number for number in ending if signal.getsignal(number) in usual]
    return {
        number: signal.signal(number, lambda number, _: noted.append(number)) for number in wanted
    }


def start_job(
    folder: Path,
    results: Path,
    *,
    processes: int,
    threads: int,
    gpus: Sequence[str] = (),
    force: bool,
) -> subprocess.Popen[bytes]:
    """Start a job's processes, through torchrun where there are several; output goes to its log.

    They share `threads` CPU threads, unless OMP_NUM_THREADS is set, and use `gpus`, or any there
    are where none are named.
    """
    for name in ("error.txt", "run_id.txt"):
        (folder / name).unlink(missing_ok=True)
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command += ["encoder_bench.sweep.jobs", str(folder.resolve()), str(results.resolve())]
    environment = {"OMP_NUM_THREADS": str(max(1, threads // processes)), **os.environ}
    if gpus:
        environment[_visibility()] = ",".join(gpus)
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*command, *(["--force"] if force else [])],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop_job(process: subprocess.Popen[bytes]) -> None:
    """End a job's processes, whichever of them are left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: it is gone
        os.killpg(process.pid, signal.SIGTERM)
    process.wait()


def close_job(folder: Path, results: Path, what_happened: str) -> None:
    """Write down that a job failed whose process could not say so: killed, out of memory."""
    status = job_status(folder, results)
    if not status.ended and status.state != "running":
        last = (text_of(folder / "log.txt").splitlines() or ["-"])[-1]
        write_text(folder / "error.txt", f"{what_happened} and no result; its log ends: {last}\n")
        (folder / "slurm.txt").unlink(missing_ok=True)


def local_slots(
    wanted: int | None, jobs: int, memory_bytes: int, gpus: int, gpus_per_job: int = 1
) -> int:
    """Return how many jobs run at a time: `wanted`, or as many as fit.

    That is one per `gpus_per_job` GPUs where there are GPUs; else one per two CPU cores, and no
    more jobs of `memory_bytes` (0: not known) than fit into nine tenths of the free memory.
    """
    if wanted is not None:
        slots = wanted
    elif gpus:
        slots = gpus // gpus_per_job
    else:
        slots = usable_cores() // 2
        if memory_bytes:
            slots = min(slots, int(0.9 * available_memory()) // memory_bytes)
    return max(1, min(slots, jobs))


def gpus_of(slot: int, gpus: Sequence[str], per_job: int) -> list[str]:
    """Return the GPUs of the job in a slot; slots beyond their number share them in turn.

    >>> gpus_of(1, ["0", "1", "2", "3"], 2), gpus_of(2, ["0", "1"], 1), gpus_of(0, [], 1)
    (['2', '3'], ['0'], [])
    """
    if not gpus:
        return []
    first = slot * per_job % (len(gpus) // per_job * per_job)
    return list(gpus[first : first + per_job])


def _visibility() -> str:
    """Return the variable that says which GPUs there are; ROCm's own hides CUDA's."""
    import torch

    own = "HIP_VISIBLE_DEVICES"
    return own if torch.version.hip and os.environ.get(own) else "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """Return the numbers, or the UUIDs, of the GPUs that this process may use.

    Reference: CUDA's programming guide on CUDA_VISIBLE_DEVICES, whose list ends at the first entry
    that is no device, such as -1; a scheduler names GPUs and their MIG parts by UUID.
    """
    import torch

    if stated := os.environ.get(_visibility()):
        entries = (entry.strip() for entry in stated.split(","))
        return list(itertools.takewhile(_GPU.fullmatch, entries))
    return [str(number) for number in range(torch.cuda.device_count())]


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
        processes, threads = max(1, self.options.gpus), self.options.cpus
        # SLURM repeats this very job after a preemption or a failed node; then it resumes
        again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        process = start_job(
            self.folder,
            self.results,
            processes=processes,
            threads=threads,
            force=self.force and not again,
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
    for part in (new[at : at + _MAX_ARRAY] for at in range(0, len(new), _MAX_ARRAY)):
        errors = {folder: text_of(folder / "error.txt") for folder in part}
        for folder in part:
            (folder / "error.txt").unlink(missing_ok=True)
        try:
            with executor.batch():
                jobs = [
                    executor.submit(SlurmJob(folder, results.resolve(), options, force))
                    for folder in part
                ]
        except FailedJobError as error:
            for folder in filter(errors.get, part):
                write_text(folder / "error.txt", f"{errors[folder]}\n")
            raise EncoderBenchError(f"--launcher slurm: sbatch refused: {error}") from error
        for folder, job in zip(part, jobs, strict=True):
            write_text(folder / "slurm.txt", f"{job.job_id}\n")


def wait_for(folders: Sequence[Path], results: Path) -> Generator[Path, None, None]:
    """Yield each queued job's folder once it has ended, by its own word or by leaving the queue.

    Raises:
        EncoderBenchError: the scheduler does not answer.
    """
    pending = {folder: text_of(folder / "slurm.txt") for folder in folders}
    left: dict[Path, float] = {}
    while pending:
        time.sleep(_QUEUE_POLL_SECONDS)
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


def known_queue() -> Collection[str] | None:
    """Return the ids of this user's jobs in SLURM's queue; None without one, or where it fails.

    The scheduler is asked at most every 15 seconds.
    """
    return _queue_at(int(time.monotonic() // 15))


@functools.lru_cache(maxsize=1)
def _queue_at(_: int) -> frozenset[str] | None:
    try:
        return frozenset(_queue())
    except (EncoderBenchError, OSError):
        return None


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
