"""How the cells of a sweep stand, read from files that any process on any node may write.

What belongs here: the small JSON state of a cell and the heartbeat beside it. A process that was
killed cannot say so; a heartbeat that stopped does.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from encoder_bench.base.files import write_text
from encoder_bench.sweep.cells import Cell, cells_folder, read_cell

State = Literal["planned", "queued", "running", "lost", "failed", "done"]

_BEAT_SECONDS = 5.0
_STALE_SECONDS = 60.0


class CellStatus(BaseModel):
    """A cell's state as its file holds it.

    Attributes:
        state: `lost` is never written; it is what a `running` cell is whose heartbeat stopped.
        attempts: how often it was started.
        run_id: of the finished run's record.
        message: the last line: of progress, or of the error.
        host: of the process that runs or ran it.
        pid: of that process.
        started: ISO 8601, UTC.
        ended: ISO 8601, UTC.
    """

    model_config = ConfigDict(extra="ignore")

    state: State = "planned"
    attempts: int = 0
    run_id: str | None = None
    message: str = ""
    host: str = ""
    pid: int = 0
    started: str | None = None
    ended: str | None = None


def now() -> str:
    """Return this second in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_status(folder: Path, status: CellStatus) -> None:
    """Replace a cell's state in one step."""
    write_text(folder / "status.json", status.model_dump_json(indent=1) + "\n")


def read_status(folder: Path, results: Path) -> CellStatus:
    """Return how a cell stands now.

    A `done` cell whose record was removed is `planned` again; a `running` one whose process is gone
    is `lost`. A damaged file counts as none.

    Args:
        folder: the cell's.
        results: the results folder, whose records are looked at.
    """
    try:
        text = (folder / "status.json").read_text(encoding="utf-8")
        status = CellStatus.model_validate_json(text)
    except (OSError, ValidationError):
        return CellStatus()
    if status.state == "done":
        record = results / "records" / f"{status.run_id}.json"
        return status if record.is_file() else CellStatus(attempts=status.attempts)
    if status.state == "running" and not _is_alive(folder, status):
        return status.model_copy(update={"state": "lost"})
    return status


def read_all(results: Path) -> list[tuple[Path, Cell, CellStatus]]:
    """Return every cell of a results folder with its state, oldest first."""
    folders = [path.parent for path in cells_folder(results).glob("*/cell.json")]
    folders.sort(key=lambda folder: (folder / "cell.json").stat().st_mtime)
    return [(folder, read_cell(folder), read_status(folder, results)) for folder in folders]


@contextlib.contextmanager
def heartbeat(folder: Path) -> Iterator[None]:
    """Touch the cell's heartbeat file every few seconds while the block runs."""
    path = folder / "heartbeat"
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                path.touch()
            stop.wait(_BEAT_SECONDS)

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _is_alive(folder: Path, status: CellStatus) -> bool:
    if status.host == socket.gethostname():
        return _process_exists(status.pid)
    try:
        age = time.time() - (folder / "heartbeat").stat().st_mtime
    except OSError:
        return False
    return age < _STALE_SECONDS


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
