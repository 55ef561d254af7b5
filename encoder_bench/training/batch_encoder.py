"""Image files to patch tokens: decoded by all cores, encoded in passes of one shape."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.files import reading
from encoder_bench.base.limits import usable_cores
from encoder_bench.data.images import load_image, read_image_bytes
from encoder_bench.encoders.encoder import Encoder, finite_tokens
from encoder_bench.mllm.attention import usual_kernel
from encoder_bench.training.feature_shards import Seen, file_stamp

_BATCH, _CPU_BATCH = 32, 8
"""Images of one pass; on CPUs a small one is as quick per image and is ready sooner."""
_MAX_DECODERS = 32

Decoded = tuple[Seen, Tensor | None]
"""An image file as it was read, and its pixels; None where its content is known already."""


class BatchEncoder:
    """Decodes images ahead in threads, and encodes them; meant for one thread that asks.

    Attributes:
        size: images of one pass; halved where memory runs out.
        ahead: images that are worth decoding beyond a batch, to keep all cores at work.
    """

    def __init__(
        self, encoder: Encoder, device: torch.device, known: Callable[[str], bool]
    ) -> None:
        """Keep a frozen encoder; images whose sha256 is `known` are not decoded."""
        cores = min(_MAX_DECODERS, usable_cores())
        self.size = _CPU_BATCH if device.type == "cpu" else _BATCH
        self.ahead = max(self.size, 2 * cores)
        self._device, self._known = device, known
        self._waiting: dict[Path, Future[Decoded]] = {}
        self._pool = one_core_threads(cores)
        self.use(encoder)

    def use(self, encoder: Encoder) -> None:
        """Encode with this copy of the encoder from now on."""
        self._encoder = encoder.eval()

    def start(self, paths: Iterable[Path]) -> None:
        """Begin to decode images."""
        for path in paths:
            if path not in self._waiting:
                self._waiting[path] = self._pool.submit(self._decode, path)

    def take(self, path: Path) -> Decoded:
        """Return an image that `start` was called with; one that failed fails each time.

        Raises:
            DataError: the image cannot be read.
        """
        decoded = self._waiting[path].result()  # stays where it raises
        del self._waiting[path]
        return decoded

    def forget(self, known: Callable[[Path], bool]) -> None:
        """Drop images that were begun and are known by now, through another process."""
        self._waiting = {p: found for p, found in self._waiting.items() if not known(p)}

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def encode(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Return each image's `(N, D)` patch tokens on the CPU; the encoder moves to the device.

        Raises:
            WeightsError: a patch token is not finite.
        """
        self._encoder.to(self._device)
        tokens: list[Tensor] = []
        while len(tokens) < len(pixels):
            try:
                tokens += self._encode_at_once(pixels[len(tokens) : len(tokens) + self.size])
            except RuntimeError as error:
                if self.size == 1 or not is_out_of_memory(error):
                    raise
                self.size = (self.size + 1) // 2
        return tokens

    def close(self) -> None:
        """End the threads, and drop what was decoded ahead."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._waiting = {}

    def _encode_at_once(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Encode at most `size` images in a pass that is padded to `size`.

        Kernels are chosen by shape, so that the bits of a feature could otherwise depend on how
        many images were encoded with it.
        """
        padding = pixels[0].new_zeros(self.size - len(pixels), *pixels[0].shape)
        stacked = torch.cat([torch.stack(list(pixels)), padding]).to(self._device)
        with torch.autocast(self._device.type, enabled=False), usual_kernel(self._device):
            tokens: Tensor = self._encoder(stacked)
        found = finite_tokens(self._encoder, tokens[: len(pixels)].cpu())
        return [each.clone() for each in found]

    def _decode(self, path: Path) -> Decoded:
        with reading(path):
            stamp, data = file_stamp(path), read_image_bytes(path)
        seen = Seen(stamp, hashlib.sha256(data).hexdigest())
        if self._known(seen.digest):
            return seen, None
        return seen, self._encoder.transform(load_image(path, data))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory ran out; accelerate knows the words of Apple's MPS from 1.14 on."""
    known = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
    return known or "MPS backend out of memory" in str(error)


def one_core_threads(number: int) -> ThreadPoolExecutor:
    """Return a pool of threads in each of which PyTorch computes on one core.

    On CPUs every thread that computes would otherwise have a team of OpenMP threads of its own.
    More teams than cores make training's own wait by sleeping instead of spinning, for as long as
    they exist, which doubles the time of small models.

    Raises:
        EncoderBenchError: the system does not allow so many.
    """
    together = threading.Barrier(number)

    def use_one_core() -> None:
        torch.get_num_threads()  # a thread's first call sets its number to the process's
        torch.set_num_threads(1)
        together.wait()  # so that each thread of the pool does it once

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(number)
    try:
        started = [pool.submit(use_one_core) for _ in range(number)]
    except RuntimeError as error:  # the system has no more threads for this process
        together.abort()
        pool.shutdown(cancel_futures=True)
        raise EncoderBenchError(
            f"{number} threads cannot be started ({error}); allow more (ulimit -u, or the "
            "container's limit of processes), or let it use fewer cores (taskset)"
        ) from error
    for ready in started:
        ready.result()
    torch.set_num_threads(threads)  # of this thread and of those to come
    return pool
