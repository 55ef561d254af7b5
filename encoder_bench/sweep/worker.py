"""What a process of a sweep does: `python -m encoder_bench.sweep.worker JOB RESULTS [--force]`."""

import datetime
import os
import socket
import sys
import traceback
from pathlib import Path

from filelock import FileLock, Timeout

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.files import write_text
from encoder_bench.sweep.jobs import STARTED, Job, RunStatus, job_status, read_job

LOCK_TIMEOUT = 5.0
"""Seconds; a command that asks how a job stands holds its lock for a moment."""


def run_job(folder: Path, results: Path, *, force: bool = False) -> RunStatus:
    """Do a job's run, or resume it, and return how it ended; an error is a state, not raised.

    Raises:
        RecordError: `job.json` is missing or damaged.
    """
    job = read_job(folder)
    try:
        with FileLock(folder / ".lock", timeout=LOCK_TIMEOUT):
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            print(f"{STARTED}{socket.gethostname()} at {now}", file=sys.stderr, flush=True)
            (folder / "error.txt").unlink(missing_ok=True)
            try:
                identity = _run(job, results, force=force)
            except EncoderBenchError as error:
                write_text(folder / "error.txt", f"{error}\n")
            except Exception as error:  # recorded, like any other failure
                traceback.print_exc()
                write_text(folder / "error.txt", f"{type(error).__name__}: {error}\n")
            else:
                write_text(folder / "run_id.txt", f"{identity}\n")
            (folder / "slurm.txt").unlink(missing_ok=True)
    except Timeout:
        print("another process is doing this run", file=sys.stderr)
    return job_status(folder, results, job)


def _run(job: Job, results: Path, *, force: bool) -> str:
    """Return the run's id; in a process that is not the main one, do its share of the training."""
    from encoder_bench.base.progress import PlainReporter
    from encoder_bench.pipeline.run import run_here

    outcome = run_here(job.plan(results), PlainReporter(), force=force, command=job.command)
    return "" if outcome is None else outcome.record.run_id


if __name__ == "__main__":
    job_folder, results_folder = Path(sys.argv[1]), Path(sys.argv[2])
    if os.environ.get("RANK", "0") != "0":
        _run(read_job(job_folder), results_folder, force=False)
    elif run_job(job_folder, results_folder, force="--force" in sys.argv).state != "done":
        sys.exit(1)
