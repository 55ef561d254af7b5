"""A cell done by several processes, as `accelerate launch` or `torchrun` starts them.

What belongs here: the command that starts the processes of one cell, and what each of them does.
Where cells run is `launchers.py`'s job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_MODULE = "encoder_bench.sweep.launched"


def launch_command(
    folder: Path, results: Path, *, processes: int, cpu: bool, force: bool
) -> list[str]:
    """Return the command that does a cell with several processes on this machine.

    On GPUs it is `accelerate launch`; on CPUs, where that starts a single process, `torchrun`.

    Args:
        folder: the cell's.
        results: the results folder.
        processes: how many; one a GPU.
        cpu: whether the run stays on the CPU.
        force: do it again though it is done.
    """
    if cpu:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    else:
        launcher = ["accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
        launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        launcher += [f"--main_process_port={_free_port()}"]
    arguments = [str(folder.resolve()), str(results.resolve()), *(["--force"] if force else [])]
    return [sys.executable, "-m", *launcher, "-m", _MODULE, *arguments]


def run_processes(command: list[str]) -> int:
    """Run a launch command, pass its output on, and return its exit status.

    Ended from outside (a preemption, an interrupt), the processes end too: they are told to stop,
    and what they had written is gone on from.
    """
    with _own_group(command) as process:
        return process.wait()


@contextlib.contextmanager
def _own_group(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(arguments: list[str]) -> None:
    """Do this process' share of a cell: the main one runs it, the others train along."""
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.base.processes import join_processes
    from encoder_bench.base.progress import PlainReporter
    from encoder_bench.pipeline.run import run_worker
    from encoder_bench.sweep.cells import read_cell
    from encoder_bench.sweep.worker import run_cell

    folder, results = Path(arguments[0]), Path(arguments[1])
    plan = read_cell(folder).plan(results)
    processes = join_processes(cpu=choose_device(plan.device).type == "cpu")
    if processes.is_main:
        status = run_cell(
            folder, results, PlainReporter(), force="--force" in arguments, joined=processes
        )
        sys.exit(0 if status.state == "done" else 1)
    run_worker(plan, processes)


if __name__ == "__main__":
    main(sys.argv[1:])
