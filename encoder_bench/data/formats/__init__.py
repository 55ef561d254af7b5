"""The formats of training mixtures, and the index of a source's rows.

A format yields raw rows (`rows`) and makes a conversation of each (`parse`). What cannot be
trained on is counted by its reason and never raised, so that one bad row of a million costs one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import SourceSettings
from encoder_bench.data.formats import llava
from encoder_bench.data.formats.row import (
    MAX_EXAMPLES,
    BadRow,
    Parsed,
    Place,
    RawRow,
    RawRows,
    note_skipped,
)
from encoder_bench.data.index import Index, RowMaker, open_index

FORMAT_VERSION = "1"
"""Raised where the same file gives other rows, so that no earlier index is read."""
SCHEMA = pa.schema(
    {
        "number": pa.int64(),
        "images": pa.list_(pa.string()),
        "users": pa.list_(pa.string()),
        "assistants": pa.list_(pa.string()),
    }
)


class Format(NamedTuple):
    """How a source's rows are read.

    Attributes:
        rows: yields what the files hold.
        parse: makes a row of it, or raises a `BadRow`.
        endings: of the files that a folder is searched for.
    """

    rows: Callable[[Place], RawRows]
    parse: Callable[[Any], Parsed]
    endings: tuple[str, ...]


def find_format(source: SourceSettings) -> Format:
    """Return the format that a source names."""
    return {"llava": Format(llava.rows, llava.parse, (".json", ".jsonl"))}[source.format]


def locate(source: SourceSettings, root: Path) -> Place:
    """Return where a source's data is; `root` is what its relative paths begin at.

    Raises:
        DataError: the path names no file, or the image folder is none.
    """
    where = f"source '{source.name}'"
    images = root / Path(source.images).expanduser()
    if not images.is_dir():
        raise DataError(f"{where}: images = '{source.images}': no folder {images}")
    path = root / Path(source.path or "").expanduser()
    if path.is_dir():
        endings = find_format(source).endings
        files = [file for file in sorted(path.rglob("*")) if file.name.endswith(endings)]
    elif path.is_file():
        files = [path]
    else:
        files = [file for file in sorted(root.glob(source.path or "")) if file.is_file()]
    if not files:
        raise DataError(f"{where}: no file {path}; paths begin at {root} (--train-data)")
    return Place(source, root, tuple(files), images)


def open_source(place: Place, reporter: Reporter) -> Index:
    """Return the index of a source's rows (`SCHEMA`), which is made where files have changed.

    Its `about` holds `read`, `files` (with the number of each one's first row), `skipped` (by
    reason: count and the first examples) and `sha256` of all that the rows say.

    Raises:
        DataError: a file is not of the format, or no row of it can be trained on.
    """
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in place.files]
    source = place.source.model_dump(exclude={"weight", "max_rows", "coco", "images"})
    key = repr((FORMAT_VERSION, source, stats))
    return open_index(key, SCHEMA, partial(_make_rows, place, reporter))


def _make_rows(place: Place, reporter: Reporter) -> RowMaker:
    kind, source = find_format(place.source), place.source
    digest = hashlib.sha256()
    skipped: dict[str, dict[str, Any]] = {}
    files: list[tuple[str, int]] = []
    read = kept = 0
    with reporter.phase(f"reading {source.name}", unit="rows") as phase:
        for read, raw in enumerate(kind.rows(place), start=1):
            if not files or files[-1][0] != raw.file:
                files.append((raw.file, read - 1))
            try:
                parsed = _parsed(kind, raw)
                entry = {
                    "number": read - 1,
                    "images": list(parsed.images),
                    "users": [turn.user for turn in parsed.turns],
                    "assistants": [turn.assistant for turn in parsed.turns],
                }
                digest.update(_encoded(entry))
            except BadRow as error:
                note_skipped(skipped, error.reason, f"{raw.file}: row {raw.number}: {error}")
            else:
                kept += 1
                yield entry
            phase.advance()
    if not kept:
        first = next(iter(skipped.values()))["first"][0] if skipped else "no rows"
        names = ", ".join(file.name for file in place.files[:MAX_EXAMPLES])
        raise DataError(
            f"source '{source.name}': nothing in {names} can be trained on as format "
            f"'{source.format}': {first}"
        )
    return {"read": read, "files": files, "skipped": skipped, "sha256": digest.hexdigest()}


def _parsed(kind: Format, raw: RawRow) -> Parsed:
    if isinstance(raw.content, BadRow):
        raise raw.content
    return kind.parse(raw.content)


def _encoded(entry: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(entry)
    except UnicodeEncodeError as error:
        raise BadRow("not Unicode", f"half a surrogate pair ({error.reason})") from None


__all__ = ["BadRow", "Format", "Parsed", "Place", "find_format", "locate", "open_source"]
