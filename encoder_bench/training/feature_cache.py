"""Patch tokens of a frozen encoder, computed when first needed and shared by everything.

A folder is named by what made its features: the encoder's fingerprint (weights, preprocessing,
layer), dtype, token count, storage and kind of device.
"""

import contextlib
import itertools
import math
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from encoder_bench.base.errors import DataError, EncoderBenchError, RecipeError, TrainingError
from encoder_bench.base.files import writing
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.paths import cache_dir
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import FeatureStorage
from encoder_bench.data.images import LOADING
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.training.batch_encoder import BatchEncoder
from encoder_bench.training.feature_shards import FeatureShards, Seen, file_stamp, path_key

_WINDOW = 64
"""Batches of the announced order in which the next images to encode are looked for."""
_SHARD_IMAGES, _SHARD_BYTES = 512, 2**28
_FLUSH_SECONDS, _REFRESH_SECONDS = 60.0, 5.0
_FREE_SHARE = 0.8
_MAX_SHOWN_ERRORS = 3


class FeatureStore(Mapping[Path, Tensor]):
    """Patch tokens `(N, D)` by image path, of the images that were announced.

    An image that the cache lacks is encoded when it is asked for, in one batch with the next ones
    of the announced order that it lacks, while the images after those are already being decoded by
    all cores. What is new is written when it fills a shard, and by `flush`. Any thread may ask.

    Attributes:
        order: the announced images, each once, in the order in which they will be asked for.
        encoded: images that the encoder has seen; `found` those that were in the cache.
        seconds: spent in encoding and in waiting for decoded images, by whichever thread asked.
    """

    def __init__(
        self,
        shards: FeatureShards,
        encoder: Encoder,
        order: Sequence[Path],
        *,
        device: torch.device,
        storage: FeatureStorage,
        reporter: Reporter,
    ) -> None:
        """Announce an order; nothing is read or computed yet."""
        self.order = list(dict.fromkeys(order))
        self.encoded, self.found, self.seconds = 0, 0, 0.0
        self._shards, self._reporter = shards, reporter
        self._dtype = torch.float16 if storage == "float16" else None
        self._places = {path: place for place, path in enumerate(self.order)}
        self._digests: dict[Path, str] = {}
        self._pending: dict[str, Tensor] = {}
        self._learned: dict[str, Seen] = {}
        self._errors: list[Tensor] = []
        self._keeps = True
        self._flushed = self._refreshed = time.perf_counter()
        self._lock = threading.RLock()
        self._encoder = BatchEncoder(encoder, device, self._known)

    def use(self, encoder: Encoder) -> None:
        """Encode with this copy of the encoder from now on."""
        self._encoder.use(encoder)

    def __getitem__(self, path: Path) -> Tensor:
        """Return an image's tokens, encoding it where the cache lacks it.

        Raises:
            KeyError: the image was not announced.
            DataError: the image cannot be read.
            WeightsError: its patch tokens are not finite.
            RecipeError: they are beyond what the storage holds.
        """
        with self._lock:
            while (tokens := self._read(path)) is None:
                self._encode_from(path)
            return tokens

    def __contains__(self, path: object) -> bool:
        """Return whether an image's tokens are to be had from here.

        That is every announced image, or only those in the cache once it cannot be written.
        """
        if self._keeps or not isinstance(path, Path):
            return path in self._places
        with self._lock:
            return path in self._places and self._has(path)

    def __iter__(self) -> Iterator[Path]:
        return (path for path in self.order if path in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def missing(self) -> list[Path]:
        """Return the announced images that the cache lacks; images never seen count as such."""
        with self._lock:
            return [path for path in self.order if not self._has(path)]

    def fill(self) -> None:
        """Encode and write every announced image that is missing, with a progress bar.

        Of several processes that fill the same folder one works and the others wait.

        Raises:
            DataError: images that cannot be read; the features of all others are kept.
            EncoderBenchError: the cache cannot be written.
        """
        unreadable: list[DataError] = []
        if not self._keeps:
            return
        with writing(self._shards.folder):
            self._shards.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._shards.folder / ".lock").acquire()
        with (
            lock,
            self._reporter.phase("features", len(self.order), "images") as phase,
        ):
            self._shards.refresh()
            for path in itertools.takewhile(lambda _: self._keeps, self.order):
                try:
                    with self._lock:
                        if not self._has(path):
                            self._encode_from(path)
                except DataError as error:
                    unreadable.append(error)
                phase.advance()
            self.flush()
        if unreadable:
            shown = "; ".join(str(error) for error in unreadable[:_MAX_SHOWN_ERRORS])
            raise DataError(
                f"{len(unreadable)} images cannot be read, the features of the other "
                f"{len(self.order) - len(unreadable)} images are kept: {shown}"
            )

    def flush(self) -> None:
        """Write what is new, so that a later run finds it.

        Raises:
            EncoderBenchError: the cache cannot be written, and storage is inexact.
        """
        with self._lock:
            if not self._keeps or not (self._pending or self._learned):
                return
            try:
                self._shards.write(self._pending, self._learned)
            except (OSError, EncoderBenchError) as error:
                self.stop_keeping(_unwritten(self._shards.folder, error))
            else:
                self._pending, self._learned = {}, {}
                self._flushed = time.perf_counter()

    def close(self) -> None:
        """Write what is new, and end the decoding threads."""
        self._encoder.close()
        self.flush()

    def stop_keeping(self, reason: str) -> None:
        """Warn that what the cache lacks is encoded at each use from now on.

        Raises:
            EncoderBenchError: storage is inexact: computed at each use features would differ.
        """
        self._keeps = False
        if self._dtype is not None:
            raise EncoderBenchError(
                f"{reason}; with training.feature_storage float16 the features of all images must "
                "be kept, since computed in every step they would differ: free disk space, or set "
                "it to exact"
            )
        self._reporter.warn(f"{reason}; images that the cache lacks are encoded at every use")

    def summary(self) -> str:
        """Return in one line how many images were encoded and found, and the error of storage."""
        line = f"features: {self.encoded} images encoded in {self.seconds:.1f} s, "
        line += f"{self.found} found in the cache"
        if not self._errors:
            return line
        error = math.sqrt(float(torch.cat(self._errors).mean()))
        return f"{line}; relative error of what is stored {error:.2%} (RMS)"

    def _has(self, path: Path) -> bool:
        """Return whether an image's features are known, without reading the image."""
        if path not in self._digests:
            seen = self._shards.seen.get(path_key(path))
            with contextlib.suppress(OSError):
                if seen is not None and seen.stamp == file_stamp(path):
                    self._know(path, seen.digest)
        digest = self._digests.get(path)
        return digest is not None and self._known(digest)

    def _known(self, digest: str) -> bool:
        return digest in self._pending or digest in self._shards

    def _know(self, path: Path, digest: str) -> None:
        self._digests[path] = digest
        self.found += digest in self._shards

    def _read(self, path: Path) -> Tensor | None:
        if path not in self._places:
            raise KeyError(path)
        if not self._has(path):
            return None
        digest = self._digests[path]
        tokens = self._pending.get(digest)
        if tokens is None and (tokens := self._shards.read(digest)) is None:
            self._reporter.warn(
                f"{self._shards.folder}: a part of the feature cache was damaged on disk and is "
                "removed; its images are encoded again"
            )
        return tokens

    def _encode_from(self, path: Path) -> None:
        """Encode an image, with the next ones of the order that are missing."""
        start = time.perf_counter()
        if start - self._refreshed > _REFRESH_SECONDS:
            self._shards.refresh()
            self._encoder.forget(self._has)
            self._refreshed = start
        batch: dict[str, Tensor] = {}
        for each in self._start(path):
            try:
                seen, pixels = self._encoder.take(each)
            except DataError:
                if each == path:
                    raise
                continue  # raised when it is asked for
            self._learned[path_key(each)] = seen
            self._know(each, seen.digest)
            if pixels is not None:
                batch[seen.digest] = pixels
        if batch:
            self._keep(dict(zip(batch, self._encoder.encode(list(batch.values())), strict=True)))
        self.seconds += time.perf_counter() - start

    def _start(self, path: Path) -> list[Path]:
        """Return the images of the next batch, `path` first; those after it are decoded too."""
        size, place = self._encoder.size, self._places[path]
        window = itertools.islice(self.order, place + 1, place + size * _WINDOW)
        later = (each for each in window if not self._has(each))
        more = size - 1 + self._encoder.ahead if self._keeps else 0
        wanted = [path, *itertools.islice(later, more)]
        self._encoder.start(wanted)
        return wanted[:size]

    def _keep(self, features: Mapping[str, Tensor]) -> None:
        """Hold new features until they are written, which happens when they fill a shard."""
        stored = {d: tokens.to(self._dtype).contiguous().clone() for d, tokens in features.items()}
        self.encoded += len(stored)
        if self._dtype is not None:
            squares = [
                (stored[d].double() - tokens.double()).square().sum()
                / tokens.double().square().sum().clamp_min(1e-30)
                for d, tokens in features.items()
            ]
            self._errors.append(torch.stack(squares))
            if not self._errors[-1].isfinite().all():
                raise RecipeError(
                    "training.feature_storage: float16 holds no value beyond 65,504, as this "
                    "encoder's patch tokens have; set it to exact"
                )
        if not self._keeps:
            self._pending = stored
            return
        self._pending |= stored
        size = sum(tokens.nbytes for tokens in self._pending.values())
        waited = time.perf_counter() - self._flushed
        if len(self._pending) >= _SHARD_IMAGES or size >= _SHARD_BYTES or waited > _FLUSH_SECONDS:
            self.flush()


def open_features(
    encoder: Encoder,
    order: Sequence[Path],
    *,
    device: torch.device,
    reporter: Reporter,
    limit_bytes: int | None = None,
    storage: FeatureStorage = "exact",
) -> FeatureStore:
    """Return the patch tokens of images, which are computed when they are first asked for.

    `order` is that in which they will be; an image may be in it several times. The size of what is
    missing is printed. Where that is more than `limit_bytes` (None for 80% of the free disk), or
    the cache cannot be written, the store holds only what the cache has; other images are then
    encoded at each use, with the same result. The encoder is moved to `device` when it is needed.

    Raises:
        TrainingError: the encoder is not frozen.
        EncoderBenchError: features that are stored inexactly cannot all be kept.
    """
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        raise TrainingError("features of an encoder that trains would go stale; do not cache them")
    made_by = [encoder.fingerprint(), str(encoder.dtype), str(encoder.num_tokens)]
    place = f"{device.type}, IEEE" if device.type == "cuda" else device.type  # not TF32's
    key = hash_text(*made_by, storage, LOADING, place)[:32]
    shards = FeatureShards(cache_dir("features", key))
    store = FeatureStore(shards, encoder, order, device=device, storage=storage, reporter=reporter)
    missing = sum(1 for path in store.order if path_key(path) not in shards.seen)
    itemsize = 2 if storage == "float16" else encoder.dtype.itemsize
    size = missing * encoder.num_tokens * encoder.width * itemsize
    try:
        shards.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(shards.folder).free
        limit = int(free * _FREE_SHARE) if limit_bytes is None else limit_bytes
        if size <= limit:
            shards.mark_used({"encoder": encoder.spec.name, "storage": storage})
    except (OSError, EncoderBenchError) as error:
        if missing:
            store.stop_keeping(_unwritten(shards.folder, error))
        return store
    if size > limit:
        store.stop_keeping(
            f"features of {missing} images need {_size_text(size)}, more than the "
            f"{_size_text(limit)} allowed"
        )
    elif missing:
        reporter.note(
            f"feature cache: up to {missing} of {len(store.order)} images to encode, "
            f"{_size_text(size)} of {_size_text(free)} free, in {shards.folder}"
        )
    return store


def _unwritten(folder: Path, error: OSError | EncoderBenchError) -> str:
    reason = getattr(error, "strerror", None) or error
    return f"the feature cache {folder} cannot be written: {reason}"


def _size_text(size: int) -> str:
    power = 1 if size < 2**20 else 2 if size < 2**30 else 3
    return f"{size / 2 ** (10 * power):.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"
