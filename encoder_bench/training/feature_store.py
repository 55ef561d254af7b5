"""Patch tokens on disk: shards, what they hold, and looking after them.

What belongs here: the format. A shard is one safetensors file that maps the sha256 of an image
file to its patch tokens; it is written beside its place and renamed, so it is whole or absent,
and reading maps it into memory. Computing features is `feature_cache.py`'s job.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.files import atomic_path, write_text
from encoder_bench.base.paths import cache_dir

Storage = Literal["exact", "float16"]
"""`exact` keeps the encoder's dtype."""

_CHECKSUMS = "crc32"
_ABOUT = "about.json"


class FeatureStore(Mapping[Path, Tensor]):
    """Patch tokens `(N, D)` by image path, mapped from shards when they are asked for."""

    def __init__(self, folder: Path, digests: Mapping[Path, str], storage: Storage) -> None:
        """Index the shards of a folder, which may be absent.

        Args:
            folder: of one encoder's shards.
            digests: sha256 of each image file.
            storage: how features are kept in this folder.
        """
        self._folder = folder
        self._digests = dict(digests)
        self._storage = storage
        self._shards: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._unchecked: dict[str, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take up shards that were written since, by this process or another."""
        for path in sorted(self._folder.glob("*.safetensors")):
            if path not in self._open:
                self._index(path)

    def _index(self, path: Path) -> None:
        """Take up a shard; a torn one (a disk that lied, a copy cut short) is put away."""
        try:
            handle: Any = safe_open(path, framework="pt")
            names = list(handle.keys())
        except (SafetensorError, OSError):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return
        self._open[path] = handle
        self._shards |= dict.fromkeys(names, path)
        self._unchecked |= json.loads((handle.metadata() or {}).get(_CHECKSUMS, "{}"))

    def missing(self) -> dict[str, Path]:
        """Return the images without features, one path for each content, by digest."""
        wanted = {digest: path for path, digest in self._digests.items()}
        return {digest: path for digest, path in wanted.items() if digest not in self._shards}

    def add(self, features: Mapping[str, Tensor]) -> float:
        """Write a shard and index it.

        Args:
            features: `(N, D)` by image digest.

        Returns:
            The squared relative error of what is read back, averaged over the shard; 0 if exact.

        Raises:
            EncoderBenchError: the disk is full or read-only.
        """
        dtype = torch.float16 if self._storage == "float16" else None
        stored = {d: tokens.to(dtype).contiguous().clone() for d, tokens in features.items()}
        path = self._folder / f"{uuid.uuid4().hex}.safetensors"
        with atomic_path(path) as temporary:
            checksums = json.dumps({name: _checksum(tensor) for name, tensor in stored.items()})
            save_file(stored, temporary, metadata={_CHECKSUMS: checksums})
        self._index(path)
        if self._storage == "exact":
            return 0.0
        errors = [_relative_square(self._read(name), tokens) for name, tokens in features.items()]
        return sum(errors) / len(errors)

    def _read(self, digest: str) -> Tensor:
        """Return an image's tokens; its checksum is compared the first time.

        Raises:
            TrainingError: its bytes are not those that were written; the shard is removed.
        """
        path = self._shards[digest]
        tensor: Tensor = self._open[path].get_tensor(digest)
        expected = self._unchecked.pop(digest, None)
        if expected is not None and _checksum(tensor) != expected:
            path.unlink(missing_ok=True)
            raise TrainingError(
                f"{path}: this part of the feature cache was damaged on disk and is removed; run "
                "the same command again, which encodes its images again and goes on"
            )
        return tensor

    def __getitem__(self, path: Path) -> Tensor:
        digest = self._digests[path]
        if digest not in self._shards:
            raise KeyError(path)
        return self._read(digest)

    def __contains__(self, path: object) -> bool:
        return path in self._digests and self._digests[path] in self._shards

    def __iter__(self) -> Iterator[Path]:
        return (path for path in self._digests if path in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data)


def bytes_an_image(tokens: int, width: int, dtype: torch.dtype, storage: Storage) -> int:
    """Return what one image takes on disk.

    >>> bytes_an_image(256, 1024, torch.float32, "float16")
    524288
    """
    return tokens * width * (2 if storage == "float16" else dtype.itemsize)


def _relative_square(read: Tensor, tokens: Tensor) -> float:
    exact = tokens.double()
    return float((read.double() - exact).square().sum() / exact.square().sum().clamp_min(1e-30))


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """The features of one encoder in one way of storing them.

    Attributes:
        folder: of its shards.
        encoder: its name, as it was when the folder was made.
        storage: `exact` or `float16`.
        images: distinct images.
        size_bytes: of all its shards.
        last_used: seconds since the epoch.
    """

    folder: Path
    encoder: str
    storage: str
    images: int
    size_bytes: int
    last_used: float


def describe(folder: Path, *, encoder: str, storage: Storage) -> None:
    """Write what a folder holds, or mark it as used now.

    Raises:
        EncoderBenchError: the folder cannot be written.
    """
    about = folder / _ABOUT
    if about.is_file():
        with contextlib.suppress(OSError):
            os.utime(about)
    else:
        write_text(about, json.dumps({"encoder": encoder, "storage": storage}) + "\n")


def list_features() -> list[CacheEntry]:
    """Return every encoder's cached features, the least recently used first."""
    entries = [_entry(about.parent) for about in cache_dir("features").glob(f"*/{_ABOUT}")]
    return sorted(entries, key=lambda entry: entry.last_used)


def prune_features(most_bytes: int) -> list[CacheEntry]:
    """Remove the least recently used features until at most `most_bytes` are left.

    Returns:
        What was removed.
    """
    entries = list_features()
    total = sum(entry.size_bytes for entry in entries)
    removed = []
    for entry in entries:
        if total <= most_bytes:
            break
        shutil.rmtree(entry.folder, ignore_errors=True)
        total -= entry.size_bytes
        removed.append(entry)
    return removed


def _entry(folder: Path) -> CacheEntry:
    about = folder / _ABOUT
    try:
        content = json.loads(about.read_text(encoding="utf-8"))
        encoder, storage = str(content["encoder"]), str(content["storage"])
    except (OSError, ValueError, KeyError, TypeError):
        encoder = storage = "unknown"
    images: set[str] = set()
    size = 0
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError, SafetensorError):
            size += path.stat().st_size
            with safe_open(path, framework="pt") as shard:
                images |= set(shard.keys())
    return CacheEntry(folder, encoder, storage, len(images), size, about.stat().st_mtime)
