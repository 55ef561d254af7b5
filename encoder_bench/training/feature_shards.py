"""Patch tokens on disk: shards that map the sha256 of an image's bytes to its patch tokens.

A shard is a safetensors file, whole or absent, read by memory mapping. Its metadata holds a CRC-32
per image, and which files had those bytes when: paths as hashes, and a stamp of size and times, so
that a later run knows an image by its path without reading it.
"""

import contextlib
import json
import os
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from encoder_bench.base.files import atomic_path, write_text
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.paths import ABOUT
from encoder_bench.data.archives import split_archive

_CHECKSUMS, _FILES = "crc32", "files"


class Seen(NamedTuple):
    """An image's bytes as they were: the stamp of its file then, and their sha256."""

    stamp: str
    digest: str


def path_key(path: Path) -> str:
    """Return what a path is remembered by."""
    return hash_text(str(path.absolute()))[:24]


def file_stamp(path: Path) -> str:
    """Return what changes when a file is written: its size and times; of an archive, for a member.

    Raises:
        OSError: there is no such file.
    """
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        inside = split_archive(path)
        if inside is None:
            raise
        stat = inside[0].stat()
    return hash_text(str(stat.st_size), str(stat.st_mtime_ns), str(stat.st_ctime_ns))[:16]


class FeatureShards:
    """The shards of one encoder in one storage, also those that other processes add.

    Attributes:
        folder: may be absent.
        seen: the images that were ever encoded, by `path_key`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, Seen] = {}
        self._shards: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._unchecked: dict[str, int] = {}
        self._about: dict[str, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Index new shards, also another process's; remove torn ones (a copy cut short)."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._open:
                continue
            try:
                handle: Any = safe_open(path, framework="pt")
                self._shards |= dict.fromkeys(handle.keys(), path)
            except SafetensorError:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                continue
            except (OSError, RuntimeError):
                continue  # a whole shard that cannot be opened now: no rights, too many open files
            self._open[path] = handle
            metadata = handle.metadata() or {}
            self._unchecked |= json.loads(metadata.get(_CHECKSUMS, "{}"))
            files = json.loads(metadata.get(_FILES, "{}"))
            self.seen |= {key: Seen(*entry) for key, entry in files.items()}

    def __contains__(self, digest: object) -> bool:
        return digest in self._shards

    def read(self, digest: str) -> Tensor | None:
        """Return an image's tokens; their checksum is compared the first time.

        None where they are not there, or not those that were written: that shard is removed.
        """
        shard = self._shards.get(digest)
        if shard is None:
            return None
        tensor: Tensor = self._open[shard].get_tensor(digest)
        expected = self._unchecked.pop(digest, None)
        if expected is None or _checksum(tensor) == expected:
            return tensor
        with contextlib.suppress(OSError):
            shard.unlink(missing_ok=True)
        self._shards = {each: path for each, path in self._shards.items() if path != shard}
        return None

    def write(self, tokens: Mapping[str, Tensor], seen: Mapping[str, Seen]) -> None:
        """Write a shard of patch tokens by image digest, and index it.

        Raises:
            EncoderBenchError: the disk is full or read-only.
        """
        checksums = json.dumps({digest: _checksum(tensor) for digest, tensor in tokens.items()})
        metadata = {_CHECKSUMS: checksums, _FILES: json.dumps(seen)}
        with atomic_path(self.folder / f"{uuid.uuid4().hex}.safetensors") as temporary:
            save_file(dict(tokens), temporary, metadata=metadata)
        if self._about and not (self.folder / ABOUT).is_file():
            self.mark_used(self._about)  # the folder was pruned while this run goes on
        self.refresh()

    def mark_used(self, about: Mapping[str, str]) -> None:
        """Write what the folder holds, or mark it as used now.

        Raises:
            EncoderBenchError, OSError: the folder cannot be written.
        """
        path, self._about = self.folder / ABOUT, dict(about)
        if path.is_file():
            os.utime(path)
        else:
            write_text(path, json.dumps(about) + "\n")


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data)
