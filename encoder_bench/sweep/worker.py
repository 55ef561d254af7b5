"""One cell, done in this process, with its state kept where others can read it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.processes import Processes
from encoder_bench.base.progress import Phase, Reporter
from encoder_bench.sweep.cells import read_cell
from encoder_bench.sweep.status import CellStatus, heartbeat, now, read_status, write_status


def run_cell(
    folder: Path,
    results: Path,
    reporter: Reporter,
    *,
    force: bool = False,
    processes: int = 1,
    joined: Processes | None = None,
) -> CellStatus:
    """Do a cell's run, or go on with it, and return how it ended. An error is a state, not raised.

    Args:
        folder: the cell's.
        results: the results folder.
        reporter: where progress goes besides the cell's status.
        force: do it again though it is done.
        processes: start so many, one a GPU, which do the run together.
        joined: the processes that do the run with this one, where it was launched as one of them.
    """
    if processes > 1:
        return _run_launched(folder, results, processes=processes, force=force)
    before = read_status(folder, results)
    status = before.model_copy(
        update={
            "state": "running",
            "attempts": before.attempts + 1,
            "message": "starting",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": now(),
            "ended": None,
        }
    )
    write_status(folder, status)
    with heartbeat(folder):
        try:
            from encoder_bench.pipeline.run import run

            cell = read_cell(folder)
            told = _StatusReporter(reporter, folder, status)
            outcome = run(
                cell.plan(results),
                told,
                force=force,
                processes=joined or Processes(),
                command=cell.command,
            )
        except EncoderBenchError as error:
            update = {"state": "failed", "message": str(error)}
        except Exception as error:  # one cell that fails must not stop the others
            traceback.print_exc()
            update = {"state": "failed", "message": f"{type(error).__name__}: {error}"}
        else:
            update = {"state": "done", "message": "", "run_id": outcome.record.run_id}
    ended = status.model_copy(update={**update, "ended": now()})
    write_status(folder, ended)
    return ended


def _run_launched(folder: Path, results: Path, *, processes: int, force: bool) -> CellStatus:
    """Do a cell with several processes, of which the main one writes the cell's status."""
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.sweep.launched import launch_command, run_processes

    try:
        cpu = choose_device(read_cell(folder).plan(results).device).type == "cpu"
        command = launch_command(folder, results, processes=processes, cpu=cpu, force=force)
        code = run_processes(command)
        message = f"its {processes} processes ended with status {code} and without a word"
    except EncoderBenchError as error:
        message = str(error)
    status = read_status(folder, results)
    if status.state in ("done", "failed"):
        return status
    ended = status.model_copy(update={"state": "failed", "message": message, "ended": now()})
    write_status(folder, ended)
    return ended


class CellJob:
    """What submitit sends to another process or node; a preempted one is queued again as it is."""

    def __init__(
        self, folder: Path, results: Path, force: bool, threads: int | None, processes: int = 1
    ) -> None:
        """Keep absolute paths: the other process may start elsewhere.

        Args:
            folder: the cell's.
            results: the results folder.
            force: do it again though it is done; not after a preemption.
            threads: CPU threads that the process may use; None for what torch finds.
            processes: that do the cell together, one a GPU.
        """
        self.folder, self.results = folder.resolve(), results.resolve()
        self.force, self.threads, self.processes = force, threads, processes

    def __call__(self) -> str:
        """Do the cell and return its state."""
        from encoder_bench.base.progress import PlainReporter

        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
        status = run_cell(
            self.folder,
            self.results,
            PlainReporter(),
            force=self.force,
            processes=self.processes,
        )
        return status.state

    def checkpoint(self) -> object:
        """Queue the cell again after a preemption or a time limit; the run goes on by itself."""
        import submitit

        status = read_status(self.folder, self.results)
        update = {"state": "queued", "message": "preempted; queued again"}
        write_status(self.folder, status.model_copy(update=update))
        return submitit.helpers.DelayedSubmission(
            CellJob(self.folder, self.results, False, self.threads, self.processes)
        )


class _StatusReporter:
    """A reporter that also keeps the last line of progress in the cell's status."""

    def __init__(self, inner: Reporter, folder: Path, status: CellStatus) -> None:
        self._inner, self._folder, self._status = inner, folder, status
        self._last = 0.0

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "it") -> Iterator[Phase]:
        self.keep(name, at_once=True)
        with self._inner.phase(name, total, unit) as phase:
            yield _StatusPhase(phase, self, name, total, unit)

    def note(self, message: str) -> None:
        self._inner.note(message)

    def warn(self, message: str) -> None:
        self._inner.warn(message)

    def keep(self, message: str, *, at_once: bool = False) -> None:
        """Write the message, at most once in two seconds unless it must be seen `at_once`."""
        if not at_once and time.monotonic() - self._last < 2.0:
            return
        self._last = time.monotonic()
        write_status(self._folder, self._status.model_copy(update={"message": message}))


class _StatusPhase:
    def __init__(
        self, inner: Phase, reporter: _StatusReporter, name: str, total: int | None, unit: str
    ) -> None:
        self._inner, self._reporter, self._name = inner, reporter, name
        self._of, self._done = f"/{total} {unit}" if total else f" {unit}", 0

    def advance(self, amount: int = 1, **fields: str) -> None:
        self._done += amount
        shown = "".join(f", {key} {value}" for key, value in fields.items())
        self._reporter.keep(f"{self._name} {self._done}{self._of}{shown}")
        self._inner.advance(amount, **fields)
