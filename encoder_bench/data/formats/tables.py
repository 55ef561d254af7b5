"""Rows of tables: data sets in Arrow and Parquet, opened through `datasets`, and TSV and CSV.

Image bytes stay where they are. Parquet is unpacked once into the cache of `datasets`, since an
image in the middle of a Parquet file cannot be reached alone.
"""

import csv
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from encoder_bench.base.errors import DataError
from encoder_bench.base.files import atomic_folder, reading
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.paths import cache_dir
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import SourceSettings
from encoder_bench.data.archives import cell_sizes, image_bytes, is_list, open_arrow
from encoder_bench.data.formats.row import KEYS, BadRow, Place, RawRow, RawRows, caption
from encoder_bench.data.hub import open_rows

_IMAGE_COLUMNS = ("images", "image")
_CAPTION_COLUMNS = {
    "image": ("image", "file_name", "image_path", "filename", "filepath", "path", "images"),
    "text": ("caption", "text", "TEXT", "title", "description"),
}
MAX_CELL_CHARACTERS = 2**24
_GIB = 2**30


def prepare(place: Place, reporter: Reporter) -> Place:
    """Return where the Arrow files of a data set are: its own, or those of the cache.

    Raises:
        DataError: the Hub or the files cannot be read, or the disk is too small.
    """
    source = place.source
    if not source.hub and not any(file.suffix in (".arrow", ".parquet") for file in place.files):
        return place
    files = _streamed(source) if source.streaming else _loaded(place, reporter)
    if not _has_bytes(files[0], source.image_column):
        return replace(place, files=files)
    folder = Path(os.path.commonpath([file.parent for file in files]))
    return replace(place, files=files, images=folder, trusted=True)


def _loaded(place: Place, reporter: Reporter) -> tuple[Path, ...]:
    import datasets

    source = place.source
    if source.hub:
        loaded = open_rows(source.hub, source.split, source.revision, config=source.config)
    elif place.files[0].suffix == ".arrow":
        return place.files
    else:
        size = sum(file.stat().st_size for file in place.files)
        cache = Path(datasets.config.HF_DATASETS_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
        needs = f"source '{source.name}': {size / _GIB:.2f} GiB of Parquet are unpacked to {cache}"
        if size > free:
            raise DataError(f"{needs}, where {free / _GIB:.2f} GiB are free; set HF_DATASETS_CACHE")
        reporter.note(f"{needs}, once")
        loaded = open_rows("parquet", "train", data_files=[str(file) for file in place.files])
    files = tuple(Path(entry["filename"]) for entry in loaded.cache_files)
    if sum(len(open_arrow(file)) for file in files) != len(loaded):
        raise DataError(
            f"source '{source.name}': split '{source.split}' is a part of its files; name a whole "
            "split, and choose rows by weight or max_rows"
        )
    return files


def _streamed(source: SourceSettings) -> tuple[Path, ...]:
    """Keep the first rows of a stream in the cache, as `datasets` would save them."""
    import datasets

    key = (source.hub, source.config, source.split, source.revision, source.max_rows)
    folder = cache_dir("streams", hash_text(repr(key))[:32])
    if not folder.is_dir():
        stream = open_rows(
            str(source.hub), source.split, source.revision, config=source.config, streaming=True
        )
        stream = stream.decode(False) if stream.features else stream
        rows = stream.take(source.max_rows)
        with atomic_folder(folder) as temporary:
            kept = datasets.Dataset.from_generator(
                lambda: iter(rows), features=rows.features, cache_dir=str(temporary / "making")
            )
            kept.save_to_disk(str(temporary))
            shutil.rmtree(temporary / "making")
    return tuple(sorted(folder.glob("*.arrow")))


def conversation_rows(place: Place) -> RawRows:
    """Yield the conversations of Arrow files, with the names of their images."""
    for path in place.files:
        names = open_arrow(path).column_names
        image = place.source.image_column or next((n for n in _IMAGE_COLUMNS if n in names), None)
        texts = [name for name in KEYS if name in names]
        if not texts:
            raise DataError(
                f"source '{place.source.name}': none of its columns {', '.join(names)} is one of "
                f"{', '.join(KEYS)}"
            )
        yield from _arrow_rows(
            place, path, texts, image, lambda row, images: {**row, "images": images}
        )


def caption_rows(place: Place) -> RawRows:
    """Yield the captions of Arrow, TSV and CSV files.

    Raises:
        DataError: a file cannot be read, or has no column for images or for texts.
    """

    def made(row: dict[str, Any], images: list[str]) -> object:
        (text,) = row.values()
        return caption(images, text, place.source.prompt)

    for path in place.files:
        if path.suffix != ".arrow":
            yield from _lines(path, place.source)
            continue
        names = open_arrow(path).column_names
        image, text = _columns(names, place.source, place.label)
        yield from _arrow_rows(place, path, [text], image, made)


def _columns(names: Sequence[str], source: SourceSettings, where: str) -> list[str]:
    """Return the columns of images and of captions."""
    found = []
    for kind, known in _CAPTION_COLUMNS.items():
        chosen = source.image_column if kind == "image" else source.text_column
        choices = [chosen] if chosen else known
        name = next((name for name in choices if name in names), None)
        if name is None:
            raise DataError(
                f"{where}: no column {' or '.join(choices[:3])} among {', '.join(names[:12])}; set "
                f"{kind}_column to the one that holds the {kind}s"
            )
        found.append(name)
    return found


def _lines(path: Path, source: SourceSettings) -> RawRows:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    with reading(path), path.open(encoding="utf-8-sig", newline="") as stream:
        table = csv.reader(stream, delimiter="\t" if ".tsv" in path.suffixes else ",")
        header = next(table, [])
        places = [header.index(name) for name in _columns(header, source, str(path))]
        for number in count():
            try:
                cells = next(table)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(path.name, number, BadRow("unreadable row", str(error)))
                continue
            if len(cells) == len(header):
                image, text = (cells[at] for at in places)
                content: object = caption([image] * bool(image), text, source.prompt)
            else:
                detail = f"{len(cells)} cells for {len(header)} columns"
                content = BadRow("unreadable row", detail)
            yield RawRow(path.name, number, content)


def _arrow_rows(
    place: Place,
    path: Path,
    texts: Sequence[str],
    image: str | None,
    make: Callable[[dict[str, Any], list[str]], object],
) -> RawRows:
    """Yield what `make` makes of the texts of each row and the names of its images.

    The name of an image whose bytes are in the file is virtual: `data.arrow/images/12/0`.
    """
    before = sum(len(open_arrow(file)) for file in place.files[: place.files.index(path)])
    prefix = os.path.relpath(path, place.images) if place.trusted else None
    first = 0
    for batch in open_arrow(path).select([*texts, *([image] if image else [])]).to_batches():
        shown = _names(batch.column(image), first, f"{prefix}/{image}") if image else None
        columns = [batch.column(name).to_pylist() for name in texts]
        for at, values in enumerate(zip(*columns, strict=True)):
            content = make(dict(zip(texts, values, strict=True)), shown[at] if shown else [])
            yield RawRow(place.label, before + first + at, content)
        first += len(batch)


def _names(column: pa.Array, first: int, prefix: str) -> list[list[str]]:
    """Return the names of the images of each row, of a column of bytes, paths or lists of them."""
    listed = is_list(column)
    values = column.flatten() if listed else column
    paths, has_bytes = _paths(values), image_bytes(values)
    inside = [] if has_bytes is None else pc.is_valid(has_bytes).to_pylist()
    counts = pc.fill_null(pc.list_value_length(column), 0).to_pylist() if listed else None
    found, at = [], 0
    for row, number in enumerate(counts or [1] * len(column), start=first):
        names = []
        for place in range(number):
            virtual = f"{prefix}/{row}" + f"/{place}" * listed
            name = virtual if inside and inside[at] else paths[at] if paths else None
            if name is not None or listed:
                names.append(name or "")
            at += 1
        found.append(names)
    return found


def _paths(values: pa.Array) -> list[str | None] | None:
    if pa.types.is_struct(values.type) and values.type.get_field_index("path") >= 0:
        values = pc.struct_field(values, "path")
    texts = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return values.to_pylist() if texts else None


def _has_bytes(path: Path, image: str | None) -> bool:
    table = open_arrow(path)
    names = {image} if image else {*_IMAGE_COLUMNS}
    shown = names.intersection(table.column_names)
    return any(next(cell_sizes(table, name), None) is not None for name in shown)
