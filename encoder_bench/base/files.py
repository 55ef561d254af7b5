"""Files: reading with one-line errors, and writing so that a kill never leaves half a file."""

import contextlib
import errno
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from encoder_bench.base.errors import DataError, EncoderBenchError
from encoder_bench.base.paths import cache_dir

_FULL = f"os error {errno.ENOSPC}"
"""How safetensors says that the disk is full."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Let a block read a file.

    Raises:
        DataError: it is not there, cannot be read, or is not UTF-8.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason})") from error
    except (OSError, EOFError, zlib.error) as error:  # the last two of a damaged .gz file
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason})") from error


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` to write to and rename it over `target` on success.

    Raises:
        EncoderBenchError: the disk is full or the folder cannot be written; names the target.
    """
    with _beside(target) as temporary:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        temporary.replace(target)


@contextlib.contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target` and rename it to `target` on success.

    With `replace` a folder that is there gives way; otherwise it stays, as where another process
    has made the same one meanwhile.

    Raises:
        EncoderBenchError: the disk is full or the folder cannot be written; names the target.
    """
    with _beside(target) as temporary:
        temporary.mkdir()
        yield temporary
        for path in filter(Path.is_file, temporary.iterdir()):
            _sync(path)
        temporary.chmod(0o755)
        if replace:
            shutil.rmtree(target, ignore_errors=True)
        try:
            temporary.rename(target)
        except OSError:
            if replace or not target.is_dir():
                raise


def write_text(target: Path, text: str) -> None:
    """Replace `target` by `text` (UTF-8) in one step, as `atomic_path`."""
    write_bytes(target, text.encode("utf-8"))


def write_bytes(target: Path, data: bytes) -> None:
    """Replace `target` by `data` in one step, as `atomic_path`."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a free path on the target's disk; what is left there afterwards is removed."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(".partial", f".{target.name}.", target.parent)
        with beside as folder:
            yield Path(folder) / target.name


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Let a block write a file or a folder.

    Raises:
        EncoderBenchError: the disk is full or the folder cannot be written; names the target.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) == errno.ENOSPC or _FULL in str(error):
            raise EncoderBenchError(
                f"no space left on the disk while writing {target}; free some, or choose another "
                "folder (--results for records, ENCODER_BENCH_CACHE for caches), and run it again"
            ) from error
        raise EncoderBenchError(f"cannot write {target}: {reason}{_elsewhere(target)}") from error


def _elsewhere(target: Path) -> str:
    """Return what to set where a part of the cache cannot be written."""
    with contextlib.suppress(EncoderBenchError):
        if target.is_relative_to(cache_dir()):
            return "; set ENCODER_BENCH_CACHE to a folder that can be written"
    return ""
