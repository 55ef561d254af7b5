"""From images and samples to micro-batches, prepared while the steps before them run.

What belongs here: decoding, prompts, tokenising, and the measure of how long training waits.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.images import load_image
from encoder_bench.data.sample import Sample
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import ImageDialogue, TrainingBatch, make_batch
from encoder_bench.training.order import ImageSamples

_STEPS_AHEAD = 2
_MOST_WORKERS = 8


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Images of one forward pass, and the samples of each, for errors."""

    batch: TrainingBatch
    sample_ids: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class StepBatches:
    """The micro-batches of one step on this process."""

    micro: tuple[MicroBatch, ...]

    @property
    def answer_tokens(self) -> int:
        """Taught tokens in all of them."""
        return sum(micro.batch.answer_tokens for micro in self.micro)


class BatchMaker:
    """Makes a step's micro-batches from its images.

    Attributes:
        micro_batch_images: most images in one forward pass; may be lowered between steps.
    """

    def __init__(
        self,
        mllm: MLLM,
        tasks: Mapping[str, TaskRecipe],
        *,
        micro_batch_images: int,
        shared_prefix: bool,
        row_length: int | None,
        features: Mapping[Path, Tensor] | None,
        pin_memory: bool = False,
    ) -> None:
        """Keep what is needed.

        Args:
            mllm: gives the encoder's transform and the tokenizer.
            tasks: recipes by task, for prompts and answers.
            micro_batch_images: see above.
            shared_prefix: lay all questions of an image behind one image prefix.
            row_length: tokens of a row into which whole images are packed under a shared prefix;
                None for the longest image's.
            features: `(N, D)` patch tokens by image path; images that it lacks are decoded.
            pin_memory: put images where a GPU can fetch them from by itself.
        """
        self.micro_batch_images = micro_batch_images
        self._mllm = mllm
        self._tasks = tasks
        self._shared_prefix, self._row_length = shared_prefix, row_length
        self._features = features if features is not None else {}
        self._pin_memory = pin_memory
        self._workers = ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1))

    def make(self, images: Sequence[ImageSamples]) -> StepBatches:
        """Return the micro-batches of these images.

        Raises:
            DataError: an image cannot be read, or an answer is empty.
        """
        size = self.micro_batch_images
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        return StepBatches(tuple(self._micro(part) for part in parts))

    def close(self) -> None:
        """End the decoding threads."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _micro(self, images: Sequence[ImageSamples]) -> MicroBatch:
        dialogues = [
            ImageDialogue(image.image_id, tuple(self._turn(sample) for sample in image.samples))
            for image in images
        ]
        pixels = features = None
        paths = [image.path for image in images]
        if all(path in self._features for path in paths):
            features = torch.stack([self._features[path] for path in paths])
        else:
            pixels = torch.stack(list(self._workers.map(self._pixels, paths)))
        batch = make_batch(
            self._mllm.language,
            dialogues,
            shared_prefix=self._shared_prefix,
            row_length=self._row_length,
            pixels=self._pinned(pixels),
            features=self._pinned(features),
        )
        ids = tuple(tuple(sample.sample_id for sample in image.samples) for image in images)
        return MicroBatch(batch, ids)

    def _pixels(self, path: Path) -> Tensor:
        return self._mllm.encoder.transform(load_image(path))

    def _pinned(self, tensor: Tensor | None) -> Tensor | None:
        return tensor.pin_memory() if tensor is not None and self._pin_memory else tensor

    def _turn(self, sample: Sample) -> tuple[str, str]:
        recipe = self._tasks[sample.task]
        prompt = recipe.fill_prompt(sample.question)
        return prompt, recipe.fill_answer(sample.target)


class Prefetcher:
    """Makes the next steps' batches in a thread while the current step runs.

    Attributes:
        waited_seconds: how long training has waited for a batch in all.
    """

    def __init__(self, make: Callable[[int], StepBatches], first: int, last: int) -> None:
        """Serve steps `first` to `last` - 1, made by `make(step)`, in this order."""
        self._make, self._first, self._last = make, first, last
        self.waited_seconds = 0.0

    def __iter__(self) -> Iterator[tuple[int, StepBatches]]:
        pool = ThreadPoolExecutor(1)
        try:
            ahead: deque[Future[StepBatches]] = deque()
            to_ask = iter(range(self._first, self._last))
            for step in range(self._first, self._last):
                while len(ahead) <= _STEPS_AHEAD and (following := next(to_ask, None)) is not None:
                    ahead.append(pool.submit(self._make, following))
                start = time.perf_counter()
                batches = ahead.popleft().result()
                self.waited_seconds += time.perf_counter() - start
                yield step, batches
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
