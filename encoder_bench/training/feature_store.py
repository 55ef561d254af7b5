"""Patch tokens on disk: shards, what they hold, listing and pruning.

A shard is one safetensors file that maps the sha256 of an image file to its patch tokens. It is
whole or absent, and reading maps it into memory.
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
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.files import atomic_path, write_text
from encoder_bench.base.paths import cache_dir
from encoder_bench.base.recipes import FeatureStorage

_CHECKSUMS = "crc32"
_ABOUT = "about.json"


class FeatureStore(Mapping[Path, Tensor]):
    """Patch tokens `(N, D)` by image path, mapped from shards when they are asked for."""

    def __init__(self, folder: Path, digests: Mapping[Path, str], storage: FeatureStorage) -> None:
        """Index the shards of a folder, which may be absent.

        Args:
            folder: of one encoder's shards.
            digests: sha256 of each image file.
            storage: how features are kept in this folder.
        """
        self._folder = folder
        self._digests = dict(digests)
        self._dtype = torch.float16 if storage == "float16" else None
        self._shards: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._unchecked: dict[str, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Index shards that were written since, by this process or another."""
        for path in sorted(self._folder.glob("*.safetensors")):
            if path not in self._open:
                self._index(path)

    def _index(self, path: Path) -> None:
        """Index a shard; a torn one (a disk that lied, a copy cut short) is removed."""
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
        """Write a shard of `(N, D)` features by image digest, and index it.

        Returns:
            The squared relative error of what is stored, averaged over the shard; 0 if exact.

        Raises:
            EncoderBenchError: the disk is full or read-only.
        """
        stored = {d: tokens.to(self._dtype).contiguous().clone() for d, tokens in features.items()}
        path = self._folder / f"{uuid.uuid4().hex}.safetensors"
        with atomic_path(path) as temporary:
            checksums = json.dumps({name: _checksum(tensor) for name, tensor in stored.items()})
            save_file(stored, temporary, metadata={_CHECKSUMS: checksums})
        self._index(path)
        if self._dtype is None:
            return 0.0
        pairs = [(stored[d].double(), tokens.double()) for d, tokens in features.items()]
        errors = [(a - b).square().sum() / b.square().sum().clamp_min(1e-30) for a, b in pairs]
        return float(torch.stack(errors).mean())

    def __getitem__(self, path: Path) -> Tensor:
        """Return an image's tokens; their checksum is compared the first time.

        Raises:
            TrainingError: the bytes are not those that were written; the shard is removed.
        """
        digest = self._digests[path]
        if digest not in self._shards:
            raise KeyError(path)
        shard = self._shards[digest]
        tensor: Tensor = self._open[shard].get_tensor(digest)
        expected = self._unchecked.pop(digest, None)
        if expected is not None and _checksum(tensor) != expected:
            shard.unlink(missing_ok=True)
            raise TrainingError(
                f"{shard}: this part of the feature cache was damaged on disk and is removed; run "
                "the same command again, which encodes its images again and resumes"
            )
        return tensor

    def __contains__(self, path: object) -> bool:
        return path in self._digests and self._digests[path] in self._shards

    def __iter__(self) -> Iterator[Path]:
        return (path for path in self._digests if path in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data)


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


def describe(folder: Path, *, encoder: str, storage: FeatureStorage) -> None:
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


def prune_features(max_bytes: int) -> list[CacheEntry]:
    """Remove the least recently used features until at most `max_bytes` are left; return them."""
    entries = list_features()
    total = sum(entry.size_bytes for entry in entries)
    removed = []
    for entry in entries:
        if total <= max_bytes:
            break
        shutil.rmtree(entry.folder, ignore_errors=True)
        total -= entry.size_bytes
        removed.append(entry)
    return removed
