"""Patch tokens of a frozen encoder, computed once an image and shared by everything.

What belongs here: a content-addressed store on disk. The key is the encoder's fingerprint
(weights, preprocessing, layer), the dtype and the bytes of the image file. A shard is one
safetensors file, written beside its place and renamed: it is whole or absent, two processes that
fill the store at once only write some features twice, and reading maps it into memory.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from encoder_bench.atomic import atomic_path
from encoder_bench.data.images import load_image
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.errors import EncoderBenchError
from encoder_bench.hashing import hash_file, hash_text
from encoder_bench.paths import cache_dir
from encoder_bench.progress import Reporter

_BATCH = 32
_SHARD_IMAGES = 512
_FREE_SHARE = 0.8


class FeatureStore(Mapping[Path, Tensor]):
    """Patch tokens `(N, D)` by image path, mapped from shards when they are asked for."""

    def __init__(self, folder: Path, digests: Mapping[Path, str]) -> None:
        """Index the shards of a folder.

        Args:
            folder: of one encoder's shards.
            digests: sha256 of each image file.
        """
        self._folder = folder
        self._digests = dict(digests)
        self._shards: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._index(path)

    def _index(self, path: Path) -> None:
        """Take up a shard; one that is torn (by a failing disk, say) is removed and made again."""
        try:
            handle: Any = safe_open(path, framework="pt")
            keys = list(handle.keys())
        except (SafetensorError, OSError):
            path.unlink(missing_ok=True)
            return
        self._open[path] = handle
        self._shards |= dict.fromkeys(keys, path)

    def missing(self) -> list[Path]:
        """Return the images without features, one path a content."""
        wanted = {digest: path for path, digest in self._digests.items()}
        return [path for digest, path in wanted.items() if digest not in self._shards]

    def add(self, features: Mapping[str, Tensor]) -> None:
        """Write a shard of features by image digest, and index it.

        Raises:
            EncoderBenchError: the disk is full or read-only.
        """
        path = self._folder / f"{uuid.uuid4().hex}.safetensors"
        with atomic_path(path) as temporary:
            save_file(dict(features), temporary)
        self._index(path)

    def __getitem__(self, path: Path) -> Tensor:
        digest = self._digests[path]
        if digest not in self._shards:
            raise KeyError(path)
        tensor: Tensor = self._open[self._shards[digest]].get_tensor(digest)
        return tensor

    def __contains__(self, path: object) -> bool:
        return path in self._digests and self._digests[path] in self._shards

    def __iter__(self) -> Iterator[Path]:
        return (path for path in self._digests if path in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def open_features(
    encoder: Encoder,
    images: Sequence[Path],
    *,
    device: torch.device,
    reporter: Reporter,
    limit_bytes: int | None = None,
) -> FeatureStore | None:
    """Return the patch tokens of all images, computing those that are not in the store yet.

    Args:
        encoder: frozen; left on the CPU.
        images: files, repeats allowed.
        device: where to encode.
        reporter: told the size before a byte is written, then the progress.
        limit_bytes: most that may be written now; None for 80% of the free disk.

    Returns:
        The store, or None where it would not fit or cannot be written; the run then encodes
        images as it needs them, with the same result.

    Raises:
        DataError: an image cannot be read.
    """
    dtype = next(encoder.backbone.parameters()).dtype
    name = hash_text(encoder.fingerprint(), str(dtype), str(encoder.num_tokens))[:24]
    folder = cache_dir("features", name)
    with ThreadPoolExecutor() as pool:
        unique = list(dict.fromkeys(images))
        digests = dict(zip(unique, pool.map(hash_file, unique), strict=True))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        store = FeatureStore(folder, digests)
        missing = store.missing()
        size = len(missing) * encoder.num_tokens * encoder.width * dtype.itemsize
        limit = limit_bytes if limit_bytes is not None else _room(folder)
        if size > limit:
            reporter.warn(
                f"features of {len(missing)} images need {size / 2**20:.0f} MiB, more than the "
                f"{limit / 2**20:.0f} MiB allowed; the frozen encoder runs at every step instead"
            )
            return None
        if missing:
            reporter.note(f"caching features: {len(missing)} images, {size / 2**20:.0f} MiB")
            _fill(store, encoder, missing, digests, device, reporter)
    except (OSError, EncoderBenchError) as error:
        if isinstance(error, EncoderBenchError) and "cannot write" not in str(error):
            raise
        reporter.warn(f"feature cache {folder} cannot be written ({error}); going on without it")
        return None
    return store


def _room(folder: Path) -> int:
    return int(shutil.disk_usage(folder).free * _FREE_SHARE)


@torch.inference_mode()
def _fill(
    store: FeatureStore,
    encoder: Encoder,
    missing: Sequence[Path],
    digests: Mapping[Path, str],
    device: torch.device,
    reporter: Reporter,
) -> None:
    encoder.to(device).eval()
    waiting: dict[str, Tensor] = {}
    with (
        reporter.phase("features", len(missing), "images") as phase,
        ThreadPoolExecutor(2) as pool,
    ):
        for start in range(0, len(missing), _BATCH):
            paths = missing[start : start + _BATCH]
            pixels = torch.stack(list(pool.map(lambda p: encoder.transform(load_image(p)), paths)))
            tokens = encoder(pixels.to(device)).cpu()
            waiting |= {digests[p]: row.clone() for p, row in zip(paths, tokens, strict=True)}
            if len(waiting) >= _SHARD_IMAGES:
                store.add(waiting)
                waiting = {}
            phase.advance(len(paths))
        if waiting:
            store.add(waiting)
