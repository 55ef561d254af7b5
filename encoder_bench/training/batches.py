"""What each step trains on: the order of images and questions, and their micro-batches."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from encoder_bench.base.hashing import hash_text
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.images import load_image
from encoder_bench.data.sample import Sample
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import ImageDialogue, TrainingBatch, make_batch

T = TypeVar("T")

_STEPS_AHEAD = 2
_MAX_WORKERS = 8


@dataclass(frozen=True, slots=True)
class ImageSamples:
    """Training samples of one image."""

    image_id: int | str
    path: Path
    samples: tuple[Sample, ...]


def group_by_image(samples: Sequence[Sample], tasks: Sequence[str]) -> list[ImageSamples]:
    """Return the samples of the given tasks by image, ordered by image id."""
    groups: dict[int | str, list[Sample]] = {}
    for sample in samples:
        if sample.task in tasks:
            groups.setdefault(sample.image_id, []).append(sample)
    return [
        ImageSamples(image_id, group[0].image_path, tuple(group))
        for image_id, group in sorted(groups.items(), key=lambda item: str(item[0]))
    ]


class StageOrder:
    """The order of one stage: epochs are permutations, one after the other, without a gap.

    It follows from seed, stage and step alone, so that a resumed run, or one on another number of
    processes, sees exactly the samples that it would have seen.
    """

    def __init__(
        self,
        groups: Sequence[ImageSamples],
        *,
        stage: str,
        seed: int,
        images_per_step: int,
        samples_per_image: int,
    ) -> None:
        """Fix the order; nothing is drawn yet."""
        self._groups = groups
        self._key = (str(seed), stage)
        self._images_per_step = images_per_step
        self._samples_per_image = samples_per_image
        self._permutations: dict[int, list[int]] = {}

    def step(self, number: int) -> list[ImageSamples]:
        """Return the images of a step (from 0), each with the samples that it teaches this time."""
        first = number * self._images_per_step
        return [self._visit(first + offset) for offset in range(self._images_per_step)]

    def _visit(self, position: int) -> ImageSamples:
        epoch, place = divmod(position, len(self._groups))
        group = self._groups[self._permutation(epoch)[place]]
        rng = self._random("samples", str(epoch), str(group.image_id))
        by_task: dict[str, list[Sample]] = {}
        for sample in rng.sample(group.samples, len(group.samples)):
            by_task.setdefault(sample.task, []).append(sample)
        rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_task.values()))
        in_turn = (sample for sample in rounds if sample is not None)
        chosen = tuple(itertools.islice(in_turn, self._samples_per_image))
        return ImageSamples(group.image_id, group.path, chosen)

    def _permutation(self, epoch: int) -> list[int]:
        if epoch not in self._permutations:
            order = list(range(len(self._groups)))
            self._random("images", str(epoch)).shuffle(order)
            kept = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations = kept | {epoch: order}
        return self._permutations[epoch]

    def _random(self, *what: str) -> random.Random:
        return random.Random(hash_text(*self._key, *what))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Images of one forward pass, and the samples of each, for errors."""

    batch: TrainingBatch
    sample_ids: tuple[tuple[str, ...], ...]

    def halves(self) -> list[MicroBatch]:
        """Return two micro-batches of half the images each, or this one where it has but one."""
        middle = len(self.sample_ids) // 2
        parts = [slice(0, middle), slice(middle, None)] if middle else [slice(None)]
        batch = self.batch
        return [
            MicroBatch(
                replace(
                    batch,
                    dialogues=batch.dialogues[part],
                    pixels=None if batch.pixels is None else batch.pixels[part],
                    features=None if batch.features is None else batch.features[part],
                ),
                self.sample_ids[part],
            )
            for part in parts
        ]


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
        row_length: int | None = None,
        features: Mapping[Path, Tensor] | None = None,
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
        self._mllm, self._tasks = mllm, tasks
        self._shared_prefix, self._row_length = shared_prefix, row_length
        self._features = features if features is not None else {}
        self._pin_memory = pin_memory
        self._workers = ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1))

    def make(self, images: Sequence[ImageSamples]) -> list[MicroBatch]:
        """Return the micro-batches of these images.

        Raises:
            DataError: an image cannot be read, or an answer is empty.
        """
        size = self.micro_batch_images
        return [self._micro(images[at : at + size]) for at in range(0, len(images), size)]

    def close(self) -> None:
        """End the decoding threads."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _micro(self, images: Sequence[ImageSamples]) -> MicroBatch:
        paths = [image.path for image in images]
        cached = all(path in self._features for path in paths)
        if cached:
            stacked = torch.stack([self._features[path] for path in paths])
        else:
            stacked = torch.stack(list(self._workers.map(self._pixels, paths)))
        if self._pin_memory:
            stacked = stacked.pin_memory()
        batch = make_batch(
            self._mllm.language,
            [
                ImageDialogue(image.image_id, tuple(self._turn(s) for s in image.samples))
                for image in images
            ],
            shared_prefix=self._shared_prefix,
            row_length=self._row_length,
            pixels=None if cached else stacked,
            features=stacked if cached else None,
        )
        return MicroBatch(batch, tuple(tuple(s.sample_id for s in i.samples) for i in images))

    def _pixels(self, path: Path) -> Tensor:
        return self._mllm.encoder.transform(load_image(path))

    def _turn(self, sample: Sample) -> tuple[str, str]:
        recipe = self._tasks[sample.task]
        prompt = recipe.fill_prompt(sample.question)
        return prompt, recipe.fill_answer(sample.target)


def prefetch(make: Callable[[int], T], steps: range) -> Iterator[tuple[int, T, float]]:
    """Yield each step, `make(step)` and the seconds waited for it; a thread makes the next ones."""
    pool = ThreadPoolExecutor(1)
    try:
        ahead: deque[Future[T]] = deque()
        coming = iter(steps)
        for step in steps:
            while len(ahead) <= _STEPS_AHEAD and (following := next(coming, None)) is not None:
                ahead.append(pool.submit(make, following))
            start = time.perf_counter()
            made = ahead.popleft().result()
            yield step, made, time.perf_counter() - start
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
