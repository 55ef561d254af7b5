"""Fetching a data set of the catalogue into a data folder, in the official layout.

What belongs here: downloads, unpacking and the note of what came. A repeated command goes on where
the last one stopped; what is there and right is not touched.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from encoder_bench.base.download import download
from encoder_bench.base.errors import DataError
from encoder_bench.base.files import atomic_path, write_text
from encoder_bench.base.progress import Reporter
from encoder_bench.data.catalog import CatalogFile, CatalogSet, find_set
from encoder_bench.data.images import image_inside

ARCHIVES = "downloads"
NOTE = "fetched.json"


def fetch(name: str, folder: Path, reporter: Reporter, *, keep_archives: bool = True) -> list[str]:
    """Fetch a data set by its name in the catalogue, and return a line for each thing that came.

    Args:
        name: of `catalog.toml`.
        folder: the data folder; made where it is not there.
        reporter: where progress goes.
        keep_archives: keep `downloads/` of the data folder after unpacking, so that a repeated
            command can check it again.

    Raises:
        UnknownNameError: no such set.
        DataError: not reachable, not the file that was meant, or a damaged archive.
    """
    entry = find_set(name)
    folder.mkdir(parents=True, exist_ok=True)
    if entry.hub is not None:
        return [_from_hub(name, entry, folder, reporter)]
    return [
        _file(name, file, folder, reporter, keep_archives=keep_archives) for file in entry.files
    ]


def _file(
    name: str, file: CatalogFile, folder: Path, reporter: Reporter, *, keep_archives: bool
) -> str:
    into = folder / file.into
    target = (folder / ARCHIVES if file.unpack else into) / file.name
    noted = _noted(folder).get(file.url, {})
    if file.unpack and not target.is_file() and noted.get("unpacked"):
        return f"{file.name}: unpacked into {into} before (sha256 {noted['sha256'][:12]})"
    expected = file.sha256 or (None if file.sha1 else noted.get("sha256"))
    digest = download(file.url, target, reporter, sha256=expected, sha1=file.sha1, size=file.size)
    if file.unpack:
        unpack(target, into, reporter)
    _note(folder, file.url, {"set": name, "sha256": digest, "unpacked": file.unpack})
    if file.unpack and not keep_archives:
        target.unlink()
    known = "as published" if file.pinned else "not published anywhere, noted and compared from now"
    return f"{file.name}: sha256 {digest[:12]}, {known}; in {into}"


def unpack(archive: Path, into: Path, reporter: Reporter) -> None:
    """Unpack a zip or tar archive; members that are there in the same size are passed over.

    Raises:
        DataError: damaged, of another kind, or with a member that leaves the folder.
    """
    into.mkdir(parents=True, exist_ok=True)
    try:
        with reporter.phase(f"unpacking {archive.name}", None, "files") as phase:
            for name, size, stream in _members(archive):
                target = image_inside(into, name, where=str(archive))
                with stream:
                    if not target.is_file() or target.stat().st_size != size:
                        with atomic_path(target) as temporary, temporary.open("wb") as written:
                            shutil.copyfileobj(stream, written, 1 << 20)
                phase.advance()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error}); remove it and repeat") from error


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if not info.is_dir() and not info.filename.startswith("__MACOSX/"):
                    yield info.filename, info.file_size, packed.open(info)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield member.name, member.size, stream


def _from_hub(name: str, entry: CatalogSet, folder: Path, reporter: Reporter) -> str:
    from encoder_bench.data.hub import import_dataset, resolved_revision

    assert entry.hub is not None
    noted = _noted(folder).get(entry.hub, {})
    revision = entry.revision or noted.get("revision") or resolved_revision(entry.hub)
    count = import_dataset(
        entry.hub,
        folder,
        kind=entry.kind,
        split=entry.split,
        part=entry.part,
        revision=revision,
        streaming=entry.streaming,
        reporter=reporter,
    )
    _note(folder, entry.hub, {"set": name, "revision": revision, "rows": count})
    return f"{entry.hub}@{revision[:12]}: {count} rows in {folder}"


def _noted(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / NOTE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); remove it and repeat") from error
    return dict(content)


def _note(folder: Path, key: str, facts: dict[str, Any]) -> None:
    """Keep what came beside the data, so that another thing under the same address is noticed."""
    write_text(folder / NOTE, json.dumps(_noted(folder) | {key: facts}, indent=1) + "\n")
