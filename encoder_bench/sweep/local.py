"""Jobs in processes of this machine, one per GPU or as many as its cores and memory allow."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from encoder_bench.base.errors import RecipeError
from encoder_bench.base.files import write_text
from encoder_bench.sweep.jobs import job_status, text_of

INTERRUPTED = {-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGUSR2}
"""Exit statuses of a process that was stopped from outside and resumes when it is run again."""
_POLL_SECONDS = 0.5


def run_local(
    folders: Sequence[Path],
    results: Path,
    *,
    slots: int | None,
    gpus_per_job: int,
    memory_bytes: int | None,
    force: bool,
) -> Generator[Path, None, None]:
    """Do jobs, `slots` at a time (see `local_slots`); yield a job's folder when it has ended.

    Each job trains on GPUs of its own; CPU threads are shared evenly. Where the caller stops, the
    processes stop too; what they had done is kept.

    Raises:
        RecipeError: more GPUs per job than there are.
    """
    gpus, per_job = visible_gpus(), max(1, gpus_per_job)
    if per_job > max(1, len(gpus)):
        raise RecipeError(f"--gpus {per_job}: this machine has {len(gpus)} GPUs")
    free = list(range(local_slots(slots, len(folders), memory_bytes, len(gpus), per_job)))
    threads = max(1, (os.cpu_count() or 1) // len(free))
    waiting = list(folders)
    running: dict[int, tuple[Path, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or running:
            while waiting and free:
                slot, folder = free.pop(), waiting.pop(0)
                own = gpus[slot * per_job : (slot + 1) * per_job]
                running[slot] = (
                    folder,
                    start_job(
                        folder, results, processes=per_job, threads=threads, gpus=own, force=force
                    ),
                )
            time.sleep(_POLL_SECONDS)
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


def start_job(
    folder: Path,
    results: Path,
    *,
    processes: int = 1,
    threads: int = 1,
    gpus: Sequence[int] = (),
    force: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a job's processes, through torchrun where there are several; output goes to its log.

    They share `threads` CPU threads, and use `gpus`, or any there are where none are named.
    """
    for name in ("error.txt", "run_id.txt"):
        (folder / name).unlink(missing_ok=True)
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command += ["encoder_bench.sweep.worker", str(folder.resolve()), str(results.resolve())]
    environment = dict(os.environ, OMP_NUM_THREADS=str(max(1, threads // processes)))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
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
    with contextlib.suppress(ProcessLookupError):
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
    wanted: int | None, jobs: int, memory_bytes: int | None, gpus: int, gpus_per_job: int = 1
) -> int:
    """Return how many jobs run at a time: `wanted`, or as many as fit.

    That is one per `gpus_per_job` GPUs where there are GPUs; else one per two CPU cores, and no
    more jobs of `memory_bytes` than fit into nine tenths of the free memory.
    """
    if wanted is not None:
        return max(1, min(wanted, jobs))
    if gpus:
        return max(1, min(gpus // gpus_per_job, jobs))
    import psutil

    slots = (os.cpu_count() or 1) // 2
    if memory_bytes:
        slots = min(slots, int(0.9 * psutil.virtual_memory().available) // memory_bytes)
    return max(1, min(slots, jobs))


def visible_gpus() -> list[int]:
    """Return the numbers of the GPUs that this process may use."""
    import torch

    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated:
        return [int(number) for number in stated.split(",") if number.strip().isdigit()]
    return list(range(torch.cuda.device_count()))
