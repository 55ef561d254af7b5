"""Rows on disk: a table in Arrow's format, made once and then mapped, so that it takes no memory.

An index is a folder of the cache that its key names; the key holds all that the rows follow from.
Reference: Arrow columnar format, section IPC file format.
"""

import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from filelock import FileLock

from encoder_bench.base.errors import DataError
from encoder_bench.base.files import atomic_folder, writing
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.paths import ABOUT, CacheEntry, cache_dir, list_cached

_ROWS_AT_ONCE = 8192
_MAX_UNUSED_SECONDS = 30 * 24 * 3600
_TABLE, _OF = "rows.arrow", "of.txt"

Row = Mapping[str, Any]
RowMaker = Generator[Row, None, Mapping[str, Any]]
"""Yields rows; returns what is to be remembered about them, as JSON (skipped rows, warnings...)."""


class Index(NamedTuple):
    """A memory-mapped table of rows, and what was remembered about them."""

    table: pa.Table
    about: dict[str, Any]


def open_index(
    key: str,
    schema: pa.Schema,
    make: Callable[[], RowMaker],
    is_current: Callable[[dict[str, Any]], bool] = lambda about: True,
    *,
    of: str = "",
) -> Index:
    """Return the index of a key, which is made where the cache lacks it.

    It appears whole or not at all; of several processes that want the same one, one makes it. One
    that, by what was remembered, is not current is made again, and then those go that nothing has
    opened for thirty days. `of` says what the rows are, for a person who lists the cache.

    Raises:
        DataError: from `make`, or the index on disk is damaged.
        EncoderBenchError: the cache cannot be written.
    """
    folder = cache_dir("index", hash_text(key, schema.to_string())[:32])
    found = _opened(folder, is_current)
    if found is None:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.with_suffix(".lock")).acquire()
        with lock:
            found = _opened(folder, is_current)  # another process may have made it meanwhile
            if found is None:
                with atomic_folder(folder, replace=True) as temporary:
                    about = _write(str(temporary / _TABLE), schema, make())
                    (temporary / _OF).write_text(of, encoding="utf-8", errors="replace")
                    (temporary / ABOUT).write_text(json.dumps(about), encoding="utf-8")
                found = _opened(folder, lambda about: True)
                _remove_unused(folder.parent)
    assert found is not None
    with contextlib.suppress(OSError):  # a cache that is read-only
        os.utime(folder / ABOUT)
    return found


def list_indexes() -> list[CacheEntry]:
    """Return the indexes that the cache holds, the least recently used first."""

    def read(folder: Path) -> tuple[str, int]:
        named = folder / _OF
        of = named.read_text(encoding="utf-8") if named.is_file() else ""
        return of or "unknown", len(_table(folder))

    return list_cached("index", read)


def _remove_unused(place: Path) -> None:
    """Remove indexes that nothing has opened for long, as of data that has changed since."""
    for about in place.glob(f"*/{ABOUT}"):
        with contextlib.suppress(OSError):
            if time.time() - about.stat().st_mtime > _MAX_UNUSED_SECONDS:
                shutil.rmtree(about.parent)


def _table(folder: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(folder / _TABLE))).read_all()


def _opened(folder: Path, is_current: Callable[[dict[str, Any]], bool]) -> Index | None:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return Index(_table(folder), about) if is_current(about) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # pa.ArrowInvalid is a ValueError
        raise DataError(f"{folder}: damaged ({error}); remove it and run it again") from error


def _write(path: str, schema: pa.Schema, rows: RowMaker) -> Mapping[str, Any]:
    about: dict[str, Any] = {}

    def noted() -> Generator[Row]:
        about.update((yield from rows) or {})

    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        source = noted()
        while batch := list(itertools.islice(source, _ROWS_AT_ONCE)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
    return about
