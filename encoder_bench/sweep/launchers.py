"""Where cells run on this machine: in this process or in local ones.

What belongs here: starting cells and waiting for them, through submitit where another process is
needed. SLURM is `slurm.py`'s business.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from encoder_bench.base.progress import Reporter
from encoder_bench.sweep.status import read_status, write_status
from encoder_bench.sweep.worker import CellJob, run_cell

LAUNCHERS = ("inline", "local", "slurm")

ENDED = ("done", "failed")
_POLL_SECONDS = 1.0
_LOCAL_MINUTES = 60 * 24 * 28

OnEnd = Callable[[Path], None]


def run_inline(
    cells: Sequence[Path],
    results: Path,
    reporter: Reporter,
    *,
    processes: int,
    force: bool,
    on_start: OnEnd,
    on_end: OnEnd,
) -> None:
    """Do the cells one after another in this process, or each in several, one a GPU.

    Args:
        cells: folders of the cells.
        results: the results folder.
        reporter: where each run's progress goes.
        processes: that do a cell together; 1 for this one alone.
        force: do them again though they are done.
        on_start: called with a cell's folder before it starts.
        on_end: called with a cell's folder once it has ended, well or not.
    """
    for folder in cells:
        on_start(folder)
        run_cell(folder, results, reporter, force=force, processes=processes)
        on_end(folder)


def run_local(
    cells: Sequence[Path],
    results: Path,
    *,
    jobs: int,
    gpus: Sequence[int],
    gpus_a_cell: int,
    force: bool,
    on_start: OnEnd,
    on_end: OnEnd,
) -> None:
    """Do the cells in local processes, `jobs` at a time, each with its own GPUs if there are any.

    CPU threads are shared out evenly. An interrupt stops the processes too; what they had done is
    kept, and the same sweep goes on from it.

    Args:
        cells: folders of the cells.
        results: the results folder.
        jobs: processes at a time.
        gpus: GPU numbers; a slot takes `gpus_a_cell` of them, as long as there are enough.
        gpus_a_cell: which one cell trains on together, through `accelerate launch`.
        force: do them again though they are done.
        on_start: called with a cell's folder once its process was started.
        on_end: called with a cell's folder once it has ended, well or not.
    """
    import submitit

    executor = submitit.LocalExecutor(folder=log_folder(results))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    waiting = list(cells)
    free = list(range(jobs))
    running: dict[int, tuple[Any, Path]] = {}
    try:
        while waiting or running:
            while waiting and free:
                slot, folder = free.pop(), waiting.pop(0)
                mine = tuple(gpus[slot * gpus_a_cell : (slot + 1) * gpus_a_cell])
                executor.update_parameters(
                    timeout_min=_LOCAL_MINUTES,
                    gpus_per_node=len(mine),
                    visible_gpus=mine,
                    setup=[f"export OMP_NUM_THREADS={threads}"],
                )
                job = CellJob(folder, results, force, threads, max(1, len(mine)))
                running[slot] = executor.submit(job), folder
                on_start(folder)
            time.sleep(_POLL_SECONDS)
            for slot, (job, folder) in list(running.items()):
                if job.done():
                    close_silent(folder, results, text_of(job.paths.stderr))
                    del running[slot]
                    free.append(slot)
                    on_end(folder)
    finally:
        for job, _ in running.values():
            with contextlib.suppress(OSError):
                job.cancel()


def local_slots(
    wanted: int | None, cells: int, memory_bytes: int | None, gpus: int, gpus_a_cell: int = 1
) -> int:
    """Return how many processes run at a time: `wanted`, or as many as fit.

    One for every `gpus_a_cell` GPUs where there are GPUs; else one for every two CPU cores, and no
    more than fit into nine tenths of the memory that is free now.

    Args:
        wanted: `--jobs`; None for as many as fit.
        cells: how many there are to do.
        memory_bytes: of the largest cell; None where it is not known.
        gpus: GPUs of this machine.
        gpus_a_cell: that one cell takes.
    """
    if wanted is not None:
        return max(1, min(wanted, cells))
    if gpus:
        return max(1, min(gpus // gpus_a_cell, cells))
    import psutil

    slots = max(1, (os.cpu_count() or 1) // 2)
    if memory_bytes:
        slots = min(slots, int(0.9 * psutil.virtual_memory().available) // memory_bytes)
    return max(1, min(slots, cells))


def visible_gpus() -> list[int]:
    """Return the numbers of the GPUs that this process may use."""
    import torch

    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated:
        return [int(number) for number in stated.split(",") if number.strip().isdigit()]
    return list(range(torch.cuda.device_count()))


def close_silent(folder: Path, results: Path, log: str) -> None:
    """Write down that a cell failed whose process ended without a word: killed, out of memory."""
    status = read_status(folder, results)
    if status.state in ENDED:
        return
    lines = log.strip().splitlines()
    message = f"its process ended without a result; its log ends: {lines[-1] if lines else '-'}"
    write_status(folder, status.model_copy(update={"state": "failed", "message": message}))


def text_of(path: Path) -> str:
    """Return a file's text, or nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def log_folder(results: Path) -> Path:
    """Return where submitit's logs of a job go; `%j` is the job's number."""
    return results.resolve() / "sweep" / "logs" / "%j"
