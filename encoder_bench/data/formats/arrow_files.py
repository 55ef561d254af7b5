"""Data sets in Arrow and Parquet, opened through `datasets`; image bytes stay where they are.

Parquet is unpacked once into the cache of `datasets`, since an image in the middle of a Parquet
file cannot be reached alone.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from encoder_bench.base.errors import DataError
from encoder_bench.base.files import atomic_folder
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.paths import cache_dir
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import SourceSettings
from encoder_bench.data.archives import image_bytes, is_list, open_arrow
from encoder_bench.data.formats.chat import KEYS
from encoder_bench.data.formats.row import Place, RawRow, RawRows
from encoder_bench.data.hub import open_rows

_IMAGE_COLUMNS = ("images", "image")
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
        for name, feature in (stream.features or {}).items():
            stream = stream.cast_column(name, _undecoded(feature))
        rows = stream.take(source.max_rows)
        with atomic_folder(folder) as temporary:
            kept = datasets.Dataset.from_generator(
                lambda: iter(rows), features=rows.features, cache_dir=str(temporary / "making")
            )
            kept.save_to_disk(str(temporary))
            shutil.rmtree(temporary / "making")
    return tuple(sorted(folder.glob("*.arrow")))


def _undecoded(feature: Any) -> Any:
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_undecoded(feature.feature))
    return feature


def rows(place: Place) -> RawRows:
    """Yield the conversations of Arrow files, with the names of their images."""
    for path in place.files:
        names = columns(path)
        image = place.source.image_column or next((n for n in _IMAGE_COLUMNS if n in names), None)
        texts = [name for name in KEYS if name in names]
        if not texts:
            raise DataError(
                f"source '{place.source.name}': none of its columns {', '.join(names)} is one of "
                f"{', '.join(KEYS)}"
            )
        yield from file_rows(place, path, texts, image)


def columns(path: Path) -> list[str]:
    """Return the names of an Arrow file's columns."""
    names: list[str] = open_arrow(path).column_names
    return names


def file_rows(place: Place, path: Path, texts: Sequence[str], image: str | None) -> RawRows:
    """Yield the columns of texts of each row, and under `images` the names of its images.

    The name of an image whose bytes are in the file is virtual: `data.arrow/images/12/0`.
    """
    table, label = open_arrow(path), str(place.source.path or place.source.hub)
    before = sum(len(open_arrow(file)) for file in place.files[: place.files.index(path)])
    prefix = os.path.relpath(path, place.images) if place.trusted else None
    number = 0
    for batch in table.select([*texts, *([image] if image else [])]).to_batches():
        values = {name: batch.column(name).to_pylist() for name in texts}
        shown = _names(batch.column(image), number, f"{prefix}/{image}") if image else None
        for at in range(len(batch)):
            row = {name: column[at] for name, column in values.items()}
            images = shown[at] if shown else []
            yield RawRow(label, before + number + at, {**row, "images": images})
        number += len(batch)


def _names(column: pa.Array, first: int, prefix: str) -> list[list[str]]:
    """Return the names of the images of each row, of a column of bytes, paths or lists of them."""
    listed = is_list(column)
    values = column.flatten() if listed else column
    paths, has_bytes = _paths(values), image_bytes(values)
    inside = [] if has_bytes is None else pc.is_valid(has_bytes).to_pylist()
    counts = pc.fill_null(pc.list_value_length(column), 0).to_pylist() if listed else None
    ends = [*accumulate(counts)] if counts else range(1, len(column) + 1)
    found = []
    for row, end in enumerate(ends):
        begin = ends[row - 1] if row else 0
        names = []
        for at in range(begin, end):
            virtual = f"{prefix}/{first + row}" + (f"/{at - begin}" if listed else "")
            name = virtual if inside and inside[at] else paths[at] if paths else None
            if name is not None or listed:
                names.append(name or "")
        found.append(names)
    return found


def _paths(values: pa.Array) -> list[str | None] | None:
    if pa.types.is_struct(values.type) and values.type.get_field_index("path") >= 0:
        values = pc.struct_field(values, "path")
    found: list[str | None] = values.to_pylist()
    return (
        found if pa.types.is_string(values.type) or pa.types.is_large_string(values.type) else None
    )


def _has_bytes(path: Path, image: str | None) -> bool:
    table = open_arrow(path)
    return any(
        name in table.column_names and any(_chunk_bytes(table[name]))
        for name in ([image] if image else _IMAGE_COLUMNS)
    )


def _chunk_bytes(column: pa.ChunkedArray) -> Iterator[bool]:
    for chunk in column.chunks:
        found = image_bytes(chunk.flatten() if is_list(chunk) else chunk)
        yield found is not None and found.null_count < len(found)
