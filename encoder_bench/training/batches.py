"""What each step trains on: the order of images and questions, and their micro-batches."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from encoder_bench.base.hashing import hash_text
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.images import load_image
from encoder_bench.data.sample import Sample
from encoder_bench.data.sample_table import ImageGroups
from encoder_bench.mllm.dialogue import ImageDialogue
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch, make_batch

T = TypeVar("T")

ImageSamples = tuple[Sample, ...]
"""Training samples of one image, at least one."""

_STEPS_AHEAD = 2
_MAX_WORKERS = 8


@dataclass(slots=True)
class StageOrder:
    """The order of one stage: epochs are permutations, one after the other, without a gap.

    It follows from seed, stage and step alone, so that a resumed run, or one on another number of
    processes, sees exactly the samples that it would have seen.
    """

    groups: ImageGroups
    _: KW_ONLY
    stage: str
    seed: int
    images_per_step: int
    samples_per_image: int
    _permutations: dict[int, list[int]] = field(default_factory=dict, init=False)

    def step(self, number: int) -> list[ImageSamples]:
        """Return the images of a step (from 0), each with the samples that it teaches this time."""
        samples = self.groups.samples
        return [tuple(samples[row] for row in rows) for rows in self._visits(number)]

    def image_paths(self, number: int) -> list[Path]:
        """Return the image files of a step, without making its samples."""
        return [self.groups.samples.image_path(rows[0]) for rows in self._visits(number)]

    def _visits(self, number: int) -> Iterator[list[int]]:
        first = number * self.images_per_step
        return map(self._visit, range(first, first + self.images_per_step))

    def _visit(self, position: int) -> list[int]:
        """Return the rows of an image's samples at this visit, drawn from its tasks in turn."""
        epoch, place = divmod(position, len(self.groups))
        if epoch not in self._permutations:
            order = list(range(len(self.groups)))
            self._random("images", str(epoch)).shuffle(order)
            kept = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations = kept | {epoch: order}
        index = self._permutations[epoch][place]
        rows = self.groups.rows(index)
        rng = self._random("samples", str(epoch), str(self.groups.image(index)))
        by_task: dict[str, list[int]] = {}
        for row in rng.sample(rows, len(rows)):
            by_task.setdefault(self.groups.task(row), []).append(row)
        rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_task.values()))
        in_turn = (row for row in rounds if row is not None)
        return list(itertools.islice(in_turn, self.samples_per_image))

    def _random(self, *what: str) -> random.Random:
        return random.Random(hash_text(str(self.seed), self.stage, *what))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Images of one forward pass, and the samples of each, for errors."""

    batch: TrainingBatch
    sample_ids: tuple[tuple[str, ...], ...]

    def halves(self) -> list[MicroBatch]:
        """Return two micro-batches of half the images each, or this one where it has but one."""
        middle = len(self.sample_ids) // 2
        if not middle:
            return [self]
        names = self.sample_ids[:middle], self.sample_ids[middle:]
        return [MicroBatch(*half) for half in zip(self.batch.halves(), names, strict=True)]


@dataclass(slots=True)
class BatchMaker:
    """Makes a step's micro-batches from its images.

    Attributes:
        tasks: recipes by task, for prompts and answers.
        micro_batch_images: most images in one forward pass; may be lowered between steps.
        shared_prefix: lay all questions of an image behind one image prefix.
        row_length: tokens of a row into which whole images are packed under a shared prefix; None
            for the longest image's.
        features: `(N, D)` patch tokens by image path; images that it lacks are decoded.
        pin_memory: put images where a GPU can fetch them from by itself.
    """

    mllm: MLLM
    tasks: Mapping[str, TaskRecipe]
    _: KW_ONLY
    micro_batch_images: int
    shared_prefix: bool
    row_length: int | None = None
    features: Mapping[Path, Tensor] = field(default_factory=dict)
    pin_memory: bool = False
    _workers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1)),
        init=False,
    )

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
        paths = [samples[0].image_path for samples in images]
        cached = all(path in self.features for path in paths)
        if cached:
            stacked = torch.stack([self.features[path] for path in paths])
        else:
            stacked = torch.stack(list(self._workers.map(self._pixels, paths)))
        if self.pin_memory:
            stacked = stacked.pin_memory()
        batch = make_batch(
            self.mllm.language,
            [ImageDialogue(group[0].image_id, tuple(map(self._turn, group))) for group in images],
            shared_prefix=self.shared_prefix,
            row_length=self.row_length,
            pixels=None if cached else stacked,
            features=stacked if cached else None,
        )
        return MicroBatch(batch, tuple(tuple(s.sample_id for s in samples) for samples in images))

    def _pixels(self, path: Path) -> Tensor:
        return self.mllm.encoder.transform(load_image(path))

    def _turn(self, sample: Sample) -> tuple[str, str]:
        recipe = self.tasks[sample.task]
        return recipe.fill_prompt(sample.question), recipe.fill_answer(sample.target)


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
