"""What each step trains on: the order of its rows, and their micro-batches."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.images import load_image
from encoder_bench.data.sample import Conversation, Sample
from encoder_bench.mllm.dialogue import (
    ImageDialogue,
    Segment,
    TokenizedDialogue,
    tokenize_dialogues,
)
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch, batch_dialogues
from encoder_bench.training.batch_encoder import one_core_threads
from encoder_bench.training.order import TrainingRow

T = TypeVar("T")

_STEPS_AHEAD = 2
_MAX_WORKERS = 8


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one forward pass, and the samples of each, for errors."""

    batch: TrainingBatch
    sample_ids: tuple[tuple[str, ...], ...]

    def halves(self) -> list[MicroBatch]:
        """Return two micro-batches of half the rows each, or this one where it has but one."""
        middle = len(self.sample_ids) // 2
        if not middle:
            return [self]
        names = self.sample_ids[:middle], self.sample_ids[middle:]
        return [MicroBatch(*half) for half in zip(self.batch.halves(), names, strict=True)]


class StepBatches(NamedTuple):
    """A process's share of a step.

    Attributes:
        micro: at least one; one that teaches nothing where no row fits into the context.
        images: that the rows show.
        cut_rows: conversations whose last turns do not fit, and are left out.
        skipped_rows: conversations whose first turn alone does not fit.
    """

    micro: list[MicroBatch]
    images: int
    cut_rows: int
    skipped_rows: int


class _Tokenized(NamedTuple):
    dialogue: TokenizedDialogue
    sample_ids: tuple[str, ...]
    images: tuple[Path, ...]


@dataclass(slots=True)
class BatchMaker:
    """Makes a step's micro-batches from its rows.

    Attributes:
        tasks: recipes by task, for prompts and answers.
        micro_batch_images: most rows in one forward pass; may be lowered between steps.
        shared_prefix: lay all questions of an image behind one image prefix.
        row_length: tokens of a row into which images and conversations are packed under a shared
            prefix; None for the longest one's.
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
        default_factory=lambda: one_core_threads(min(_MAX_WORKERS, os.cpu_count() or 1)), init=False
    )

    def make(self, rows: Sequence[TrainingRow]) -> StepBatches:
        """Return the micro-batches of these rows.

        Raises:
            DataError: an image cannot be read, an answer is empty, or a row's images are not those
                that its texts mark.
        """
        fitting, cut, size = [], 0, self.micro_batch_images
        for row in rows:
            whole = self._tokenized(row)
            fits = self._fitting(whole.dialogue)
            cut += fits is not None and fits != whole.dialogue
            if fits is not None:
                fitting.append(whole._replace(dialogue=fits, images=whole.images[: fits.images]))
        micro = [self._micro(fitting[at : at + size]) for at in range(0, len(fitting), size)]
        images = sum(len(row.images) for row in fitting)
        return StepBatches(micro or [self._nothing()], images, cut, len(rows) - len(fitting))

    def close(self) -> None:
        """End the decoding threads."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _tokenized(self, row: TrainingRow) -> _Tokenized:
        if isinstance(row, Conversation):
            item: ImageDialogue | Conversation = row
            names, images = [row.row_id], row.images
        else:
            item = ImageDialogue(row[0].image_id, tuple(map(self._turn, row)))
            names, images = [sample.sample_id for sample in row], (row[0].image_path,)
        (dialogue,) = tokenize_dialogues(self.mllm.language, [item], image=True)
        return _Tokenized(dialogue, tuple(names), images)

    def _fitting(self, dialogue: TokenizedDialogue) -> TokenizedDialogue | None:
        """Return a conversation as far as it fits; questions, which must fit, as they are."""
        if any(segment.turn for segment in dialogue.segments):
            return dialogue
        visual_tokens = self.mllm.projector.visual_tokens
        return dialogue.cut(self.mllm.language.max_length, visual_tokens)

    def _micro(self, rows: Sequence[_Tokenized]) -> MicroBatch:
        paths = [path for row in rows for path in row.images]
        cached = all(path in self.features for path in paths)
        if cached:
            images = [self.features[path] for path in paths]
        else:
            images = list(self._workers.map(self._pixels, paths))
        stacked = torch.stack(images) if images else None
        if stacked is not None and self.pin_memory:
            stacked = stacked.pin_memory()
        batch = batch_dialogues(
            self.mllm.language,
            tuple(row.dialogue for row in rows),
            shared_prefix=self.shared_prefix,
            row_length=self.row_length,
            pixels=None if cached else stacked,
            features=stacked if cached else None,
        )
        return MicroBatch(batch, tuple(row.sample_ids for row in rows))

    def _nothing(self) -> MicroBatch:
        """Return a micro-batch of one token, so that every process does every forward pass."""
        blank = TokenizedDialogue("nothing", (Segment((self.mllm.language.pad_id,)),))
        batch = batch_dialogues(self.mllm.language, (blank,), shared_prefix=False)
        return MicroBatch(batch, ((),))

    def _pixels(self, path: Path) -> Tensor:
        return self.mllm.encoder.transform(load_image(path))

    def _turn(self, sample: Sample) -> tuple[str, str]:
        recipe = self.tasks[sample.task]
        return recipe.fill_prompt(sample.question), recipe.fill_answer(sample.target)


def prefetch(make: Callable[[int], T], steps: range) -> Iterator[tuple[int, T, float]]:
    """Yield each step, `make(step)` and the seconds waited for it; a thread makes the next ones."""
    pool = one_core_threads(1)
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
