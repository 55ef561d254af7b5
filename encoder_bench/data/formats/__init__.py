"""The formats of training mixtures, and the index of a source's rows.

A format yields raw rows (`rows`) and makes a conversation of each (`parse`). What cannot be
trained on is counted by its reason and never raised, so that one bad row of a million costs one.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import QuietReporter, Reporter
from encoder_bench.base.recipes import SourceSettings
from encoder_bench.data.formats import arrow_files, captions, chat, json_files, shards, tasks
from encoder_bench.data.formats.row import BadRow, Parsed, Place, RawRow, RawRows, note_skipped
from encoder_bench.data.index import Index, RowMaker, open_index

FORMAT_VERSION = "2"
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
        prepare: what is to be done before, and where images then are.
    """

    rows: Callable[[Place], RawRows]
    parse: Callable[[object, Place], Parsed]
    endings: tuple[str, ...] = ()
    prepare: Callable[[Place, Reporter], Place] = lambda place, reporter: place


def _chat_rows(place: Place) -> RawRows:
    is_json = place.files[0].suffix in (".json", ".jsonl")
    return json_files.rows(place) if is_json else arrow_files.rows(place)


_TABLES = (".arrow", ".parquet")
_JSON = (".json", ".jsonl")
FORMATS = {
    "llava": Format(json_files.rows, chat.parse, _JSON),
    "chat": Format(_chat_rows, chat.parse, (*_TABLES, *_JSON), arrow_files.prepare),
    "captions": Format(
        captions.rows, captions.parse, (*_TABLES, ".tsv", ".csv"), arrow_files.prepare
    ),
    "webdataset": Format(shards.rows, shards.parse, (".tar",), shards.prepare),
    "folder": Format(tasks.rows, tasks.parse),
}


def locate(source: SourceSettings, root: Path, reporter: Reporter) -> Place:
    """Return where a source's data is; `root` is what its relative paths begin at.

    Raises:
        DataError: the path names no file, the image folder is none, or the Hub cannot be read.
    """
    if source.format == "folder":
        return tasks.locate(source, root, reporter)
    return FORMATS[source.format].prepare(find_place(source, root), reporter)


def find_place(source: SourceSettings, root: Path) -> Place:
    """Return a source's files, if it is not a data folder, and its images; reads no file.

    Raises:
        DataError: the path names no file, or the image folder is none.
    """
    if source.format == "folder":
        return Place(source, root, (), tasks.open_folder(source, root, QuietReporter()).root)
    where, kind = f"source '{source.name}'", FORMATS[source.format]
    images = root / Path(source.images).expanduser()
    if not images.is_dir():
        raise DataError(
            f"{where}: images = '{source.images}': no folder {images}; paths begin at {root} "
            "(--train-data)"
        )
    files = [] if source.hub else _files(source, root, kind)
    if not files and not source.hub:
        raise DataError(
            f"{where}: no file {root / str(source.path)}"
            f"{' or none in it that ends in ' + ' or '.join(kind.endings)}; paths begin at "
            f"{root} (--train-data)"
        )
    return Place(source, root, tuple(files), images)


def _files(source: SourceSettings, root: Path, kind: Format) -> list[Path]:
    """Return the files of a source's path; of a folder those of the first ending that is there.

    Of a data set's folder they are those of its split, by the names that the Hub gives them.
    """
    pattern = str(Path(str(source.path)).expanduser())
    path = root / pattern
    if path.is_dir():
        split = path / source.split
        path = split if (path / "dataset_dict.json").is_file() and split.is_dir() else path
        files = next(filter(None, (sorted(path.rglob(f"*{end}")) for end in kind.endings)), [])
        parts = (f"{source.split}-", f"{source.split}.")
        of_split = [file for file in files if file.name.startswith(parts)]
        return of_split if of_split and kind.prepare is arrow_files.prepare else files
    if path.is_file():
        return [path]
    if source.format == "webdataset" and "{" in pattern:
        return shards.expand(root, pattern)
    base = Path(path.anchor) if Path(pattern).is_absolute() else root
    return sorted(file for file in base.glob(pattern.lstrip("/")) if file.is_file())


def open_source(place: Place, reporter: Reporter) -> Index:
    """Return the index of a source's rows (`SCHEMA`), which is made where files have changed.

    Its `about` holds `read`, `files` (with the number of each one's first row), `skipped` (by
    reason: count and the first examples) and `sha256` of all that the rows say.

    Raises:
        DataError: a file is not of the format, or no row of it can be trained on.
    """
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in place.files]
    source = place.source.model_dump(exclude={"weight", "max_rows", "coco", "images"})
    key = repr((FORMAT_VERSION, source, stats, place.identity))
    return open_index(key, SCHEMA, partial(_make_rows, place, reporter), of=place.source.name)


def _make_rows(place: Place, reporter: Reporter) -> RowMaker:
    kind, source = FORMATS[place.source.format], place.source
    digest = hashlib.sha256()
    skipped: dict[str, dict[str, Any]] = {}
    files: list[tuple[str, int]] = []
    read = kept = 0
    with reporter.phase(f"reading {source.name}", unit="rows") as phase:
        for read, raw in enumerate(kind.rows(place), start=1):
            if not files or files[-1][0] != raw.file:
                files.append((raw.file, read - 1))
            try:
                parsed, said = _parsed(kind, raw, place)
            except BadRow as error:
                note_skipped(skipped, error.reason, f"{raw.file}: row {raw.number}: {error}")
            else:
                kept += 1
                digest.update(b"%d:%s" % (read - 1, said))
                yield {
                    "number": read - 1,
                    "images": parsed.images,
                    "users": [turn.user for turn in parsed.turns],
                    "assistants": [turn.assistant for turn in parsed.turns],
                }
            phase.advance()
    if not kept:
        first = next(iter(skipped.values()))["first"][0] if skipped else "no rows"
        names = str(source.path or source.hub)
        raise DataError(
            f"source '{source.name}': nothing in {names} can be trained on as format "
            f"'{source.format}': {first}"
        )
    return {"read": read, "files": files, "skipped": skipped, "sha256": digest.hexdigest()}


def _parsed(kind: Format, raw: RawRow, place: Place) -> tuple[Parsed, bytes]:
    """Return a row, and all that it says in one form."""
    if isinstance(raw.content, BadRow):
        raise raw.content
    try:
        parsed = kind.parse(raw.content, place)
        return parsed, msgspec.json.encode(parsed)
    except UnicodeEncodeError as error:
        raise BadRow("not Unicode", f"half a surrogate pair ({error.reason})") from None


__all__ = ["BadRow", "Format", "Parsed", "Place", "locate", "open_source"]
