"""Images inside archives: members of tar shards and cells of Arrow tables, by virtual paths.

A virtual path goes on below the archive's: `shard-0001.tar/000001.jpg`, or `rows.arrow/images/12/0`
(column, row, and number in the row's list).
"""

import bisect
import os
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from encoder_bench.base.errors import DataError
from encoder_bench.base.files import reading
from encoder_bench.data.index import RowMaker, open_index

TAR, ARROW = ".tar", ".arrow"
_MEMBERS = pa.schema({"name": pa.string(), "offset": pa.int64(), "size": pa.int64()})
MAX_OPEN = 4096
"""Archives whose tables stay mapped; a table takes address space, hardly any memory."""


def split_archive(path: Path) -> tuple[Path, str] | None:
    """Return an archive and the name inside it; None for the path of a plain file."""
    for parent in path.parents:
        if parent.suffix in (TAR, ARROW) and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def read_member(archive: Path, name: str) -> bytes:
    """Return the bytes of an image in an archive.

    Raises:
        DataError: no such member, or the archive is damaged.
    """
    if archive.suffix == ARROW:
        return _read_cell(archive, name)
    members = tar_members(archive)
    row = bisect.bisect_left(range(len(members)), name, key=lambda at: members["name"][at].as_py())
    if row == len(members) or members["name"][row].as_py() != name:
        raise DataError(f"{archive}: holds no {name}")
    offset, size = members["offset"][row].as_py(), members["size"][row].as_py()
    with reading(archive), archive.open("rb") as stream:
        data = os.pread(stream.fileno(), size, offset)
    if len(data) < size:
        raise DataError(f"{archive}: cut short before the end of {name}; fetch it again")
    return data


def tar_members(archive: Path) -> pa.Table:
    """Return the names, offsets and sizes of a tar file's members, sorted by name, from an index.

    Raises:
        DataError: not a tar file, or one that is compressed.
    """
    stat = archive.stat()
    return _tar_members(str(archive.resolve()), stat.st_size, stat.st_mtime_ns)


def member_sizes(archive: Path) -> dict[str, int]:
    """Return the size in bytes of every image of an archive, by its name there.

    Raises:
        DataError: the archive is damaged.
    """
    if archive.suffix == TAR:
        members = tar_members(archive)
        return dict(zip(members["name"].to_pylist(), members["size"].to_pylist(), strict=True))
    table = open_arrow(archive)
    return {name: size for column in table.column_names for name, size in cell_sizes(table, column)}


def cell_sizes(table: pa.Table, column: str) -> Iterator[tuple[str, int]]:
    """Yield the name and size of each image of a column; nothing where it holds none."""
    first = 0
    for chunk in table[column].chunks:
        names = [f"{column}/{row}" for row in range(first, first + len(chunk))]
        first += len(chunk)
        listed = is_list(chunk)
        if listed:
            lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_pylist()
            pairs = zip(names, lengths, strict=True)
            names = [f"{name}/{place}" for name, length in pairs for place in range(length)]
        values = image_bytes(chunk.flatten() if listed else chunk)
        if values is None:
            return
        sizes = pc.binary_length(values).to_pylist()
        yield from ((n, size) for n, size in zip(names, sizes, strict=True) if size is not None)


@lru_cache(MAX_OPEN)
def _tar_members(archive: str, size: int, time: int) -> pa.Table:
    def make() -> RowMaker:
        try:
            with tarfile.open(archive, "r:") as tar:
                found = [
                    (m.name.removeprefix("./"), m.offset_data, m.size) for m in tar if m.isfile()
                ]
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{archive}: not a whole tar file ({error})") from error
        for name, offset, length in sorted(found):
            yield {"name": name, "offset": offset, "size": length}
        return {}

    return open_index(repr(("tar", archive, size, time)), _MEMBERS, make, of=archive).table


def is_list(values: pa.Array) -> bool:
    """Return whether each value is a list."""
    return bool(pa.types.is_list(values.type) or pa.types.is_large_list(values.type))


def image_bytes(values: pa.Array) -> pa.Array | None:
    """Return the contents of images, as bytes or in the form of `datasets`; None if neither."""
    if pa.types.is_struct(values.type) and values.type.get_field_index("bytes") >= 0:
        values = pc.struct_field(values, "bytes")
    binary = pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)
    return values if binary else None


def _read_cell(archive: Path, name: str) -> bytes:
    try:
        column, row, *places = name.split("/")
        cell: Any = open_arrow(archive)[column][int(row)]
        for place in places:
            cell = cell[int(place)]
        value = cell.as_py()
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(f"{archive}: holds no {name} ({error})") from error
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise DataError(f"{archive}: {name} holds no bytes of an image")
    return data


def open_arrow(archive: Path) -> pa.Table:
    """Return a mapped Arrow table, of the stream format (`datasets`) or the file format.

    Raises:
        DataError: it is neither, or cannot be read.
    """
    try:
        found = archive.stat()
        return _open_arrow(archive, found.st_size, found.st_mtime_ns)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{archive}: not an Arrow file ({error})") from error


@lru_cache(MAX_OPEN)
def _open_arrow(archive: Path, size: int, time: int) -> pa.Table:
    with pa.memory_map(str(archive)) as source:
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_file(source).read_all()
