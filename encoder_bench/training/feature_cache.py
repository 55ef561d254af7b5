"""Patch tokens of a frozen encoder, computed once per image and shared by everything.

A folder is named by what made its features: the encoder's fingerprint (weights, preprocessing,
layer), dtype, token count and storage. Its shards are safetensors files, each whole or absent, that
map the sha256 of an image file to its patch tokens with a CRC-32, and are read by memory mapping.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from encoder_bench.base.errors import DataError, EncoderBenchError, TrainingError
from encoder_bench.base.files import atomic_path, write_text
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.paths import cache_dir
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import FeatureStorage
from encoder_bench.data.images import LOADING, hash_image, load_image
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.training.batches import prefetch

_BATCH = 32
_SHARD_IMAGES = 512
_FREE_SHARE = 0.8
_MAX_SHOWN_ERRORS = 3
_CHECKSUMS = "crc32"
_ABOUT = "about.json"


class FeatureStore(Mapping[Path, Tensor]):
    """Patch tokens `(N, D)` by image path, mapped from a folder's shards when asked for."""

    def __init__(self, folder: Path, digests: Mapping[Path, str], storage: FeatureStorage) -> None:
        """Index the shards of a folder, which may be absent; `digests` are of the image files."""
        self.folder, self._digests = folder, dict(digests)
        self._dtype = torch.float16 if storage == "float16" else None
        self._shards: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._unchecked: dict[str, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Index new shards, also another process's; remove torn ones (a copy cut short)."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._open:
                continue
            try:
                handle: Any = safe_open(path, framework="pt")
                self._shards |= dict.fromkeys(handle.keys(), path)
            except (SafetensorError, OSError):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                continue
            self._open[path] = handle
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
        checksums = json.dumps({digest: _checksum(tensor) for digest, tensor in stored.items()})
        with atomic_path(self.folder / f"{uuid.uuid4().hex}.safetensors") as temporary:
            save_file(stored, temporary, metadata={_CHECKSUMS: checksums})
        self.refresh()
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


def find_features(
    encoder: Encoder, images: Sequence[Path], *, storage: FeatureStorage = "exact"
) -> FeatureStore:
    """Return what the cache holds of the images' patch tokens, and compute nothing.

    Raises:
        DataError: an image file cannot be read.
    """

    def digest(path: Path) -> str:
        try:
            return hash_image(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error

    unique = list(dict.fromkeys(images))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = dict(zip(unique, pool.map(digest, unique), strict=True))
    key = [encoder.fingerprint(), str(_dtype(encoder)), str(encoder.num_tokens), storage, LOADING]
    return FeatureStore(cache_dir("features", hash_text(*key)[:32]), digests, storage)


def open_features(
    encoder: Encoder,
    images: Sequence[Path],
    *,
    device: torch.device,
    reporter: Reporter,
    limit_bytes: int | None = None,
    storage: FeatureStorage = "exact",
) -> FeatureStore | None:
    """Return the patch tokens of all images, computing those that the cache lacks.

    Of several processes that want the same features one computes them and the others wait. At
    most `limit_bytes` are written now; None for 80% of the free disk. The frozen encoder is moved
    to `device` where something has to be computed.

    Returns:
        The store. Where the disk fills up it holds what could be written. None where the rest
        would not fit or nothing can be written; images are then encoded as they are needed,
        with the same result.

    Raises:
        DataError: images that cannot be read; the features of all others are kept.
        TrainingError: the encoder is not frozen.
    """
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        raise TrainingError("features of an encoder that trains would go stale; do not cache them")
    store = find_features(encoder, images, storage=storage)
    about = {"encoder": encoder.spec.name, "storage": storage}
    missing = store.missing()
    if not missing:
        with contextlib.suppress(EncoderBenchError):
            _mark_used(store.folder, about)
        return store
    itemsize = 2 if storage == "float16" else _dtype(encoder).itemsize
    size = len(missing) * encoder.num_tokens * encoder.width * itemsize
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        free = int(shutil.disk_usage(store.folder).free * _FREE_SHARE)
        limit = free if limit_bytes is None else limit_bytes
        if size > limit:
            reporter.warn(
                f"features of {len(missing)} images need {_size_text(size)}, more than the "
                f"{_size_text(limit)} allowed; the frozen encoder runs at every step instead"
            )
            return None
        reporter.note(
            f"feature cache: {len(missing)} images, {_size_text(size)}, in {store.folder}"
        )
        with FileLock(store.folder / ".lock"):
            _mark_used(store.folder, about)
            store.refresh()
            _fill(store, encoder, device, reporter)
    except DataError:
        raise
    except (OSError, EncoderBenchError) as error:
        reporter.warn(f"feature cache cannot be written ({error}); the rest is not cached")
        return store if len(store) else None
    return store


def _dtype(encoder: Encoder) -> torch.dtype:
    dtype: torch.dtype = next(encoder.backbone.parameters()).dtype
    return dtype


def _size_text(size: int) -> str:
    return f"{size / 2**10:.1f} KiB" if size < 2**20 else f"{size / 2**20:.1f} MiB"


def _mark_used(folder: Path, about: Mapping[str, str]) -> None:
    """Write what a folder holds, or mark it as used now."""
    path = folder / _ABOUT
    if path.is_file():
        with contextlib.suppress(OSError):
            os.utime(path)
    else:
        write_text(path, json.dumps(about) + "\n")


@torch.inference_mode()
def _fill(store: FeatureStore, encoder: Encoder, device: torch.device, reporter: Reporter) -> None:
    """Compute and write what is missing, a shard at a time; report the error of inexact storage.

    Raises:
        DataError: images that cannot be read; the features of all others are kept.
    """

    def decode(digest: str) -> Tensor | DataError:
        try:
            return encoder.transform(load_image(missing[digest]))
        except DataError as error:
            return error

    encoder.to(device).eval()
    missing = store.missing()
    digests = list(missing)
    starts = range(0, len(digests), _BATCH)
    pending: dict[str, Tensor] = {}
    errors: list[float] = []
    unreadable: list[DataError] = []
    with (
        reporter.phase("features", len(digests), "images") as phase,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for start, decoded, _ in prefetch(
            lambda start: list(pool.map(decode, digests[start : start + _BATCH])), starts
        ):
            batch = zip(digests[start : start + _BATCH], decoded, strict=True)
            pixels = {d: found for d, found in batch if isinstance(found, Tensor)}
            unreadable += [found for found in decoded if isinstance(found, DataError)]
            if pixels:
                tokens = encoder(torch.stack(list(pixels.values())).to(device)).cpu()
                pending |= dict(zip(pixels, tokens, strict=True))
            if len(pending) >= _SHARD_IMAGES or (pending and start == starts[-1]):
                errors.append(store.add(pending))
                pending = {}
            phase.advance(len(decoded))
    if any(errors):
        error = math.sqrt(sum(errors) / len(errors))
        reporter.note(f"feature cache: relative error of what is stored {error:.2%} (RMS)")
    if unreadable:
        shown = "; ".join(str(error) for error in unreadable[:_MAX_SHOWN_ERRORS])
        raise DataError(
            f"{len(unreadable)} images cannot be read, the features of the other "
            f"{len(missing) - len(unreadable)} images are kept: {shown}"
        )


class CacheEntry(NamedTuple):
    """The features of one encoder in one storage; `last_used` in seconds since the epoch."""

    folder: Path
    encoder: str
    storage: str
    images: int
    size_bytes: int
    last_used: float


def list_features() -> list[CacheEntry]:
    """Return every encoder's cached features, the least recently used first."""
    entries = []
    for about in cache_dir("features").glob(f"*/{_ABOUT}"):
        try:
            content = json.loads(about.read_text(encoding="utf-8"))
            encoder, storage = str(content["encoder"]), str(content["storage"])
        except (OSError, ValueError, KeyError, TypeError):
            encoder = storage = "unknown"
        images: set[str] = set()
        size = 0
        for path in about.parent.glob("*.safetensors"):
            with contextlib.suppress(OSError, SafetensorError):
                size += path.stat().st_size
                with safe_open(path, framework="pt") as shard:
                    images |= set(shard.keys())
        used = about.stat().st_mtime
        entries.append(CacheEntry(about.parent, encoder, storage, len(images), size, used))
    return sorted(entries, key=lambda entry: entry.last_used)


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
