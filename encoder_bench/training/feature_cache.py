"""Patch tokens of a frozen encoder, computed once per image and shared by everything.

The key is the encoder's fingerprint (weights, preprocessing, layer), the dtype and the bytes of the
image file, so that features are found again by any projector, LLM, seed or task, and by no other
encoder.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from encoder_bench.base.errors import DataError, EncoderBenchError, TrainingError
from encoder_bench.base.hashing import hash_file, hash_text
from encoder_bench.base.paths import cache_dir
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import FeatureStorage
from encoder_bench.data.images import load_image
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.training.feature_store import FeatureStore, describe

__all__ = ["FeatureStore", "find_features", "open_features"]

_BATCH = 32
_SHARD_IMAGES = 512
_FREE_SHARE = 0.8
_MAX_SHOWN_ERRORS = 3


def open_features(
    encoder: Encoder,
    images: Sequence[Path],
    *,
    device: torch.device,
    reporter: Reporter,
    limit_bytes: int | None = None,
    storage: FeatureStorage = "exact",
) -> FeatureStore | None:
    """Return the patch tokens of all images, computing those that are not in the store yet.

    Of several processes that want the same features one computes them and the others wait. A
    process that is killed leaves the shards that it has written.

    The frozen encoder is moved to `device` where something has to be computed. At most
    `limit_bytes` are written now; None for 80% of the free disk. The error of float16 `storage` is
    reported.

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
    folder, name = _folder(encoder, storage), encoder.spec.name
    store = find_features(encoder, images, storage=storage)
    missing = store.missing()
    if not missing:
        with contextlib.suppress(EncoderBenchError):
            describe(folder, encoder=name, storage=storage)
        return store
    itemsize = 2 if storage == "float16" else _dtype(encoder).itemsize
    size = len(missing) * encoder.num_tokens * encoder.width * itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = int(shutil.disk_usage(folder).free * _FREE_SHARE)
        limit = free if limit_bytes is None else limit_bytes
        if size > limit:
            reporter.warn(
                f"features of {len(missing)} images need {_size_text(size)}, more than the "
                f"{_size_text(limit)} allowed; the frozen encoder runs at every step instead"
            )
            return None
        reporter.note(f"feature cache: {len(missing)} images, {_size_text(size)}, in {folder}")
        with FileLock(folder / ".lock"):
            describe(folder, encoder=name, storage=storage)
            store.refresh()
            _fill(store, encoder, device, reporter)
    except DataError:
        raise
    except (OSError, EncoderBenchError) as error:
        reporter.warn(f"feature cache cannot be written ({error}); the rest is not cached")
        return store if len(store) else None
    return store


def find_features(
    encoder: Encoder, images: Sequence[Path], *, storage: FeatureStorage = "exact"
) -> FeatureStore:
    """Return what is in the store already of the images' patch tokens, and compute nothing.

    Raises:
        DataError: an image file cannot be read.
    """
    unique = list(dict.fromkeys(images))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = dict(zip(unique, pool.map(_digest, unique), strict=True))
    return FeatureStore(_folder(encoder, storage), digests, storage)


def _folder(encoder: Encoder, storage: FeatureStorage) -> Path:
    """Return where the patch tokens of these weights and this preprocessing lie."""
    key = [encoder.fingerprint(), str(_dtype(encoder)), str(encoder.num_tokens), storage]
    return cache_dir("features", hash_text(*key)[:32])


def _dtype(encoder: Encoder) -> torch.dtype:
    dtype: torch.dtype = next(encoder.backbone.parameters()).dtype
    return dtype


def _digest(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _size_text(size: int) -> str:
    return f"{size / 2**10:.1f} KiB" if size < 2**20 else f"{size / 2**20:.1f} MiB"


@torch.inference_mode()
def _fill(store: FeatureStore, encoder: Encoder, device: torch.device, reporter: Reporter) -> None:
    """Compute and write what is missing, a shard at a time.

    Raises:
        DataError: images that cannot be read; the features of all others are kept.
    """
    encoder.to(device).eval()
    missing = store.missing()
    pending: dict[str, Tensor] = {}
    errors: list[float] = []
    unreadable: list[DataError] = []
    with reporter.phase("features", len(missing), "images") as phase:
        for decoded in _decode(encoder, missing):
            unreadable += [found for found in decoded.values() if isinstance(found, DataError)]
            pixels = {d: found for d, found in decoded.items() if isinstance(found, Tensor)}
            if pixels:
                tokens = encoder(torch.stack(list(pixels.values())).to(device)).cpu()
                pending |= dict(zip(pixels, tokens, strict=True))
            if len(pending) >= _SHARD_IMAGES:
                errors.append(store.add(pending))
                pending = {}
            phase.advance(len(decoded))
        if pending:
            errors.append(store.add(pending))
    if any(errors):
        error = math.sqrt(sum(errors) / len(errors))
        reporter.note(f"feature cache: relative error of what is stored {error:.2%} (RMS)")
    if unreadable:
        shown = "; ".join(str(error) for error in unreadable[:_MAX_SHOWN_ERRORS])
        raise DataError(
            f"{len(unreadable)} images cannot be read, the features of the other "
            f"{len(missing) - len(unreadable)} images are kept: {shown}"
        )


def _decode(
    encoder: Encoder, missing: Mapping[str, Path]
) -> Iterator[dict[str, Tensor | DataError]]:
    """Yield pixels `(3, H, W)` by digest, or why there are none, decoding one batch ahead."""

    def pixels(digest: str) -> Tensor | DataError:
        try:
            return encoder.transform(load_image(missing[digest]))
        except DataError as error:
            return error

    digests = list(missing)
    batches = [digests[start : start + _BATCH] for start in range(0, len(digests), _BATCH)]
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        ahead = [pool.map(pixels, batch) for batch in batches[:1]]
        for number, batch in enumerate(batches):
            ahead += [pool.map(pixels, following) for following in batches[number + 1 : number + 2]]
            yield dict(zip(batch, ahead.pop(0), strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
