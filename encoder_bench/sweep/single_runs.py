"""Runs of a results folder that no sweep started, as far as their files tell.

What belongs here: what `encoder-bench status` shows of `encoder-bench run`. Such a run keeps no
status of its own; its record says that it is done, its checkpoints that it is not.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import read_record


@dataclass(frozen=True, slots=True)
class SingleRun:
    """One run.

    Attributes:
        name: of what ran, or of the folder where that is not known yet.
        state: `done`, `unfinished` or `damaged`.
        run_id: empty for a damaged record.
        message: the last line.
    """

    name: str
    state: str
    run_id: str
    message: str


def single_runs(results: Path, of_sweeps: Collection[str]) -> list[SingleRun]:
    """Return the runs that belong to no cell, the unfinished ones last.

    Args:
        results: the results folder.
        of_sweeps: run ids of cells; with any, unfinished runs are left to the cells to tell.
    """
    paths = sorted((results / "records").glob("*.json"))
    runs = [_recorded(path) for path in paths if path.stem not in of_sweeps]
    if not any(of_sweeps):
        runs += _unfinished(results, {path.stem for path in paths})
    return runs


def _recorded(path: Path) -> SingleRun:
    try:
        record = read_record(path)
    except RecordError as error:
        return SingleRun(path.name, "damaged", "", str(error))
    mode = "joint" if record.joint else "frozen"
    adapter = Path(str(record.adapter.get("name"))).stem
    name = f"{record.encoder.name} {mode} seed {record.seed} ({adapter})"
    return SingleRun(name, "done", record.run_id, record.created)


def _unfinished(results: Path, done: Collection[str]) -> list[SingleRun]:
    runs = []
    for folder in sorted((results / "checkpoints").glob("*")):
        if not folder.is_dir() or folder.name in done:
            continue
        written = [path.stat().st_mtime for path in folder.glob("*")] or [folder.stat().st_mtime]
        minutes = (time.time() - max(written)) / 60
        trained = "trained, being scored" if (folder / "final").is_dir() else "training"
        runs.append(
            SingleRun(
                f"run {folder.name}",
                "unfinished",
                folder.name,
                f"{trained}; last file {minutes:.0f} min ago; the same command goes on with it",
            )
        )
    return runs
