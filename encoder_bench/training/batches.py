"""From images and samples to micro-batches, prepared while the step before them runs.

What belongs here: decoding, prompts, tokenising, and the measure of how long training waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from encoder_bench.data.images import load_image
from encoder_bench.data.sample import Sample
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import ImageDialogue, TrainingBatch, make_batch
from encoder_bench.recipes import TaskRecipe
from encoder_bench.training.order import ImageSamples


@dataclass(frozen=True, slots=True)
class StepBatches:
    """The micro-batches of one step on this process, and the samples in each, for errors."""

    micro: tuple[TrainingBatch, ...]
    sample_ids: tuple[tuple[str, ...], ...]

    @property
    def answer_tokens(self) -> int:
        """Taught tokens in all of them."""
        return sum(batch.answer_tokens for batch in self.micro)


class BatchMaker:
    """Makes a step's micro-batches from its images."""

    def __init__(
        self,
        mllm: MLLM,
        tasks: Mapping[str, TaskRecipe],
        *,
        micro_batch_images: int,
        shared_prefix: bool,
        features: Mapping[Path, Tensor] | None,
    ) -> None:
        """Keep what is needed; `features` gives `(N, D)` patch tokens by image path."""
        self._mllm = mllm
        self._tasks = tasks
        self._micro_batch_images = micro_batch_images
        self._shared_prefix = shared_prefix
        self._features = features

    def make(self, images: Sequence[ImageSamples]) -> StepBatches:
        """Return the micro-batches of these images.

        Raises:
            DataError: an image cannot be read, or a question does not fit into the context.
        """
        size = self._micro_batch_images
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        return StepBatches(
            tuple(self._micro(part) for part in parts),
            tuple(tuple(s.sample_id for image in part for s in image.samples) for part in parts),
        )

    def _micro(self, images: Sequence[ImageSamples]) -> TrainingBatch:
        dialogues = [
            ImageDialogue(image.image_id, tuple(self._turn(sample) for sample in image.samples))
            for image in images
        ]
        pixels = features = None
        paths = [image.path for image in images]
        if self._features is not None and all(path in self._features for path in paths):
            features = torch.stack([self._features[path] for path in paths])
        else:
            transform = self._mllm.encoder.transform
            pixels = torch.stack([transform(load_image(path)) for path in paths])
        return make_batch(
            self._mllm.language,
            dialogues,
            shared_prefix=self._shared_prefix,
            pixels=pixels,
            features=features,
        )

    def _turn(self, sample: Sample) -> tuple[str, str]:
        recipe = self._tasks[sample.task]
        prompt = recipe.prompt.format(question=sample.question)
        return prompt, recipe.answer.format(target=sample.target)


class Prefetcher:
    """Makes the next step's batches in a thread while the current step runs.

    Attributes:
        waited_seconds: how long training has waited for a batch in all.
    """

    def __init__(self, make: Callable[[int], StepBatches], first: int, last: int) -> None:
        """Serve steps `first` to `last` - 1, made by `make(step)`."""
        self._make, self._first, self._last = make, first, last
        self.waited_seconds = 0.0

    def __iter__(self) -> Iterator[tuple[int, StepBatches]]:
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[StepBatches] | None = None
            for step in range(self._first, self._last):
                current = ahead or pool.submit(self._make, step)
                start = time.perf_counter()
                batches = current.result()
                self.waited_seconds += time.perf_counter() - start
                ahead = pool.submit(self._make, step + 1) if step + 1 < self._last else None
                yield step, batches
