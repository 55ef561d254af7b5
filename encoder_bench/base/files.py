"""Atomic writes: a kill at any moment leaves the old content or the new, never half."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from encoder_bench.base.errors import EncoderBenchError


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path in `target`'s folder and rename it over `target` on success.

    Raises:
        EncoderBenchError: the disk is full or the folder cannot be written; names the target.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".partial", dir=target.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        raise _explained(error, target) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target` and rename it to `target` on success.

    Args:
        target: the folder, whole or absent afterwards.
        replace: whether a folder that is there gives way; otherwise it stays, as where another
            process has made the same one meanwhile.

    Raises:
        EncoderBenchError: the disk is full or the folder cannot be written; names the target.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        for path in filter(Path.is_file, temporary.iterdir()):
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.chmod(0o755)
        if replace:
            shutil.rmtree(target, ignore_errors=True)
        try:
            temporary.rename(target)
        except OSError:
            if replace or not target.is_dir():
                raise
    except OSError as error:
        raise _explained(error, target) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Replace `target` by `text` (UTF-8) in one step.

    Raises:
        EncoderBenchError: the disk is full or the folder cannot be written.
    """
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(target: Path, data: bytes) -> None:
    """Replace `target` by `data` in one step.

    Raises:
        EncoderBenchError: the disk is full or the folder cannot be written.
    """
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def _explained(error: OSError, target: Path) -> EncoderBenchError:
    if error.errno == errno.ENOSPC:
        return EncoderBenchError(
            f"no space left on the disk while writing {target}; free some, or choose another "
            "folder (--results for records, ENCODER_BENCH_CACHE for caches), and run it again"
        )
    return EncoderBenchError(f"cannot write {target}: {error.strerror or error}")
