"""Fetching the data sets of `catalog.toml` into a data folder, in the official layouts."""

from __future__ import annotations

import functools
import json
import shutil
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from encoder_bench.base.errors import DataError, UnknownNameError
from encoder_bench.base.files import atomic_path, write_text
from encoder_bench.base.hashing import known_hash
from encoder_bench.base.network import download
from encoder_bench.base.progress import Reporter
from encoder_bench.data.files import path_inside
from encoder_bench.data.hub import Kind, Part, import_dataset, resolved_revision

ARCHIVES = "downloads"
NOTE = "fetched.json"


class CatalogFile(BaseModel):
    """One official download, with the hash that others publish for it; keys as in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    into: str
    unpack: bool = False
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    sha1: tuple[str, ...] = ()
    size: int | None = Field(default=None, gt=0, alias="bytes")

    @property
    def pinned(self) -> bool:
        """Whether its content is known beforehand."""
        return self.sha256 is not None or bool(self.sha1)


class CatalogSet(BaseModel):
    """One data set: official files, or a set of the Hub for `data import`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    files: tuple[CatalogFile, ...] = ()
    hub: str | None = None
    revision: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    split: str = "validation"
    kind: Kind = "vqav2"
    part: Part = "val"
    streaming: bool = False

    @model_validator(mode="after")
    def _files_or_hub(self) -> CatalogSet:
        if bool(self.files) == bool(self.hub):
            raise ValueError("give 'files' or 'hub', one of them")
        return self

    @property
    def pinning(self) -> str:
        """How sure it is that the same content comes every time, in words."""
        known = sum(file.pinned for file in self.files)
        if self.revision:
            return f"revision {self.revision[:12]}"
        if not known:
            return "pinned on first use"
        if known == len(self.files):
            return "hashes known"
        return f"{known} of {len(self.files)} hashes known"

    @property
    def size(self) -> int | None:
        """Bytes to fetch, None where not all sizes are known."""
        sizes = [file.size or 0 for file in self.files]
        return sum(sizes) if sizes and all(sizes) else None


@functools.cache
def _content() -> dict[str, dict[str, Any]]:
    return tomllib.loads(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))


@functools.cache
def catalog() -> dict[str, CatalogSet]:
    """Return all data sets by name, in the catalogue's order."""
    entries = {name: entry for name, entry in _content().items() if name != "versions"}
    return {name: CatalogSet.model_validate(entry) for name, entry in entries.items()}


def find_set(name: str) -> CatalogSet:
    """Return a data set by name; near names are suggested."""
    if name in catalog():
        return catalog()[name]
    hint = "`encoder-bench data fetch --list` names all."
    raise UnknownNameError("data set", name, catalog(), hint)


class KnownVersion(NamedTuple):
    """A published file, and what to know before scores on it are compared."""

    name: str
    caution: str = ""


def known_version(path: Path) -> KnownVersion | None:
    """Return what is known of a file's content, None for any other content."""
    entry = _content()["versions"].get(known_hash(path, "sha1")[:8])
    return None if entry is None else KnownVersion(**entry)


def fetch(name: str, folder: Path, reporter: Reporter, *, keep_archives: bool = True) -> list[str]:
    """Fetch a data set by its name in the catalogue, and return one line per file.

    A repeated command resumes where the last one stopped, and checks the archives that were kept.
    What came is noted beside the data, so that other content at the same address is an error.

    Raises:
        DataError: not reachable, not the expected file, or a damaged archive.
    """
    entry = find_set(name)
    if entry.hub is None:
        return [_get(name, file, folder, reporter, keep_archives) for file in entry.files]
    noted = _noted(folder).get(entry.hub, {})
    revision = entry.revision or noted.get("revision") or resolved_revision(entry.hub)
    settings = entry.model_dump(include={"kind", "split", "part", "streaming"})
    count = import_dataset(entry.hub, folder, **settings, revision=revision, reporter=reporter)
    _note(folder, entry.hub, {"set": name, "revision": revision, "rows": count})
    return [f"{entry.hub}@{revision[:12]}: {count} rows in {folder}"]


def _get(
    name: str, file: CatalogFile, folder: Path, reporter: Reporter, keep_archives: bool
) -> str:
    into = folder / file.into
    target = (folder / ARCHIVES if file.unpack else into) / file.url.rpartition("/")[2]
    noted = _noted(folder).get(file.url, {})
    there = all((into / member).is_file() for member in noted.get("members", ()))
    if file.unpack and not target.is_file() and noted.get("unpacked") and there:
        return f"{target.name}: unpacked into {into} before (sha256 {noted['sha256'][:12]})"
    expected = file.sha256 or (None if file.sha1 else noted.get("sha256"))
    digest = download(file.url, target, reporter, sha256=expected, sha1=file.sha1, size=file.size)
    members = unpack(target, into, reporter) if file.unpack else []
    ends = {"members": [members[0], members[-1]]} if members else {}
    _note(folder, file.url, {"set": name, "sha256": digest, "unpacked": file.unpack, **ends})
    if file.unpack and not keep_archives:
        target.unlink()
    known = "as published" if file.pinned else "not published anywhere, noted and compared from now"
    return f"{target.name}: sha256 {digest[:12]}, {known}; in {into}"


def _noted(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / NOTE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); remove it and repeat") from error


def _note(folder: Path, key: str, facts: dict[str, Any]) -> None:
    write_text(folder / NOTE, json.dumps(_noted(folder) | {key: facts}, indent=1) + "\n")


def unpack(archive: Path, into: Path, reporter: Reporter) -> list[str]:
    """Unpack a zip or tar archive; members that are there in the same size are skipped.

    Returns their names.

    Raises:
        DataError: the archive is damaged, or a member leaves the folder.
    """
    into.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    try:
        with reporter.phase(f"unpacking {archive.name}", None, "files") as phase:
            for name, size, stream in _members(archive):
                target = path_inside(into, name, str(archive), into)
                with stream:
                    if not target.is_file() or target.stat().st_size != size:
                        with atomic_path(target) as temporary, temporary.open("wb") as written:
                            shutil.copyfileobj(stream, written, 1 << 20)
                names.append(name)
                phase.advance()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error}); remove it and repeat") from error
    return names


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if not info.is_dir() and not info.filename.startswith("__MACOSX/"):
                    yield info.filename, info.file_size, packed.open(info)
        return
    with tarfile.open(archive) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            stream = tar.extractfile(member)
            assert stream is not None
            yield member.name, member.size, stream
