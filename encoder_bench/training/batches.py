"""What each step trains on: the order of its rows, and their micro-batches."""

import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.limits import usable_cores
from encoder_bench.base.recipes import AdapterRecipe, TaskRecipe
from encoder_bench.data.images import load_image
from encoder_bench.data.mixture import Mixture
from encoder_bench.data.sample import Conversation, Sample
from encoder_bench.data.sample_table import ImageGroups, SampleTable
from encoder_bench.mllm.dialogue import (
    ImageDialogue,
    Segment,
    TokenizedDialogue,
    asked_about,
    tokenize_dialogues,
)
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch, batch_dialogues
from encoder_bench.training.batch_encoder import one_core_threads

T = TypeVar("T")

_STEPS_AHEAD = 2
_MAX_WORKERS = 8
ImageSamples = tuple[Sample, ...]
"""Training samples of one image, at least one: separate questions."""
TrainingRow = ImageSamples | Conversation
"""What one place of a step trains on."""

NO_MIXTURES: Mapping[str, Mixture] = MappingProxyType({})


@dataclass(slots=True)
class StageOrder:
    """The order of one stage: epochs are permutations, one after the other, without a gap.

    It follows from seed, stage and step alone, so that a resumed run, or one on another number of
    processes, sees exactly the samples that it would have seen.
    """

    rows: ImageGroups | Mixture
    _: KW_ONLY
    stage: str
    seed: int
    images_per_step: int
    samples_per_image: int
    _permutations: dict[int, list[int]] = field(default_factory=dict, init=False)

    def step(self, number: int) -> list[TrainingRow]:
        """Return the rows of a step (from 0), images with the samples that they teach this time."""
        rows = self.rows
        if not isinstance(rows, ImageGroups):
            return [rows[index] for _, index in self._visits(number)]
        taught = (self._drawn(rows, *visit) for visit in self._visits(number))
        return [tuple(rows.samples[place] for place in places) for places in taught]

    def image_paths(self, number: int) -> list[tuple[Path, ...]]:
        """Return the image files of each row of a step, without making its samples."""
        rows = self.rows
        visits = self._visits(number)
        if not isinstance(rows, ImageGroups):
            return rows.row_images([index for _, index in visits])
        return [(rows.samples.image_path(rows.rows(index)[0]),) for _, index in visits]

    def _visits(self, number: int) -> Iterator[tuple[int, int]]:
        """Yield the epoch of each row of a step, and which row it is."""
        for position in range(number * self.images_per_step, (number + 1) * self.images_per_step):
            epoch, place = divmod(position, len(self.rows))
            if epoch not in self._permutations:
                order = list(range(len(self.rows)))
                self._random("images", str(epoch)).shuffle(order)
                kept = {e: p for e, p in self._permutations.items() if e == epoch - 1}
                self._permutations = kept | {epoch: order}
            yield epoch, self._permutations[epoch][place]

    def _drawn(self, groups: ImageGroups, epoch: int, index: int) -> list[int]:
        """Return which samples an image teaches in an epoch, drawn from its tasks in turn."""
        rows = groups.rows(index)
        rng = self._random("samples", str(epoch), str(groups.image(index)))
        by_task: dict[str, list[int]] = {}
        for row in rng.sample(rows, len(rows)):
            by_task.setdefault(groups.task(row), []).append(row)
        rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_task.values()))
        in_turn = (row for row in rounds if row is not None)
        return list(itertools.islice(in_turn, self.samples_per_image))

    def _random(self, *what: str) -> random.Random:
        return random.Random(hash_text(str(self.seed), self.stage, *what))


def stage_order(
    samples: Sequence[Sample],
    adapter: AdapterRecipe,
    number: int,
    seed: int,
    mixtures: Mapping[str, Mixture] = NO_MIXTURES,
) -> tuple[StageOrder, int]:
    """Return the order of a stage's rows, and its number of steps.

    Its rows are those of its mixture, each as often as its weight says, else its tasks' images.

    Raises:
        TrainingError: no samples.
    """
    stage = adapter.stages[number]
    groups = SampleTable.of(samples).by_image
    rows = mixtures[stage.mixture] if stage.mixture else groups(stage.tasks)
    if not rows:
        what = stage.mixture or ", ".join(stage.tasks)
        raise TrainingError(f"stage '{stage.name}': no samples of {what}")
    order = StageOrder(
        rows,
        stage=f"{number}/{stage.name}",
        seed=seed,
        images_per_step=stage.images_per_step,
        samples_per_image=stage.samples_per_image,
    )
    if stage.steps is not None:
        return order, stage.steps
    return order, math.ceil((stage.epochs or 1.0) * len(rows) / stage.images_per_step)


def training_images(
    samples: Sequence[Sample],
    adapter: AdapterRecipe,
    seed: int,
    mixtures: Mapping[str, Mixture] = NO_MIXTURES,
    *,
    index: int = 0,
    processes: int = 1,
) -> list[Path]:
    """Return the image files that all stages show, each once, in the order of their first use.

    With `processes` those of the share of process `index`. Raises as `stage_order`.
    """
    used: dict[Path, None] = {}
    for number in range(len(adapter.stages)):
        order, steps = stage_order(samples, adapter, number, seed, mixtures)
        for step in range(steps):
            if processes == 1 and step * order.images_per_step >= len(order.rows):
                break  # the first epoch has shown them all
            shown = order.image_paths(step)[index::processes]
            used |= dict.fromkeys(path for paths in shown for path in paths)
    return list(used)


def sample_images(samples: Sequence[Sample], shown: Iterable[Path]) -> list[Path]:
    """Return the image files that training shows, in the order of its samples; mixtures' follow.

    The first of them are what whitening is fitted to and what the mean image is the mean of, so
    that nothing is encoded that training does not show. Where it shows every image, as most do,
    they are the first of the samples. `shown` are the `training_images` of all processes.
    """
    used = dict.fromkeys(shown)
    return list(dict.fromkeys([*SampleTable.of(samples).image_paths(used), *used]))


class StepBatches(NamedTuple):
    """A process's share of a step.

    Attributes:
        micro: of one forward pass each; where no row fits into the context, one without answers.
        images: that the rows show.
        cut_rows: conversations whose last turns, and images some of whose questions do not fit into
            the context, and are left out.
        skipped_rows: those of which nothing fits.
    """

    micro: list[TrainingBatch]
    images: int
    cut_rows: int
    skipped_rows: int


_Tokenized = tuple[TokenizedDialogue, tuple[Path, ...]]
"""A row and its images."""


@dataclass(slots=True)
class BatchMaker:
    """Makes a step's micro-batches from its rows.

    Attributes:
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
        default_factory=lambda: one_core_threads(min(_MAX_WORKERS, usable_cores())), init=False
    )

    def make(self, rows: Sequence[TrainingRow]) -> StepBatches:
        """Return the micro-batches of these rows.

        Raises:
            DataError: an image cannot be read, an answer is empty, or a row's images are not those
                that its texts mark.
        """
        fitting, cut, size = [], 0, self.micro_batch_images
        for row in rows:
            whole, paths = self._tokenized(row)
            fits = self._fitting(whole)
            cut += fits is not None and fits != whole
            if fits is not None:
                fitting.append((fits, paths[: fits.images]))
        micro = [self._micro(fitting[at : at + size]) for at in range(0, len(fitting), size)]
        images = sum(len(paths) for _, paths in fitting)
        return StepBatches(micro or [self._nothing()], images, cut, len(rows) - len(fitting))

    def close(self) -> None:
        """End the decoding threads."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _tokenized(self, row: TrainingRow) -> _Tokenized:
        if isinstance(row, Conversation):
            item: ImageDialogue | Conversation = row
            names: tuple[str, ...] = (row.row_id,)
            images = row.images
        else:
            item = asked_about(row, self.tasks)
            names, images = tuple(s.sample_id for s in row), (row[0].image_path,)
        (dialogue,) = tokenize_dialogues(self.mllm.language, [item], image=True)
        return dialogue._replace(samples=names), images

    def _fitting(self, dialogue: TokenizedDialogue) -> TokenizedDialogue | None:
        """Return a row as far as it fits; as it is where its image alone does not, an error."""
        context, visual_tokens = self.mllm.language.max_length, self.mllm.projector.visual_tokens
        asks = any(segment.turn for segment in dialogue.segments)
        if asks and dialogue.longest(visual_tokens)[1] >= context:
            return dialogue
        return dialogue.cut(context, visual_tokens)

    def _micro(self, rows: Sequence[_Tokenized]) -> TrainingBatch:
        paths = [path for _, images in rows for path in images]
        encoded = all(path in self.features for path in paths)
        if encoded:
            read = [self.features[path] for path in paths]
        else:
            transform = self.mllm.encoder.transform
            read = list(self._workers.map(lambda path: transform(load_image(path)), paths))
        stacked = torch.stack(read) if read else None
        if stacked is not None and self.pin_memory:
            stacked = stacked.pin_memory()
        return batch_dialogues(
            self.mllm.language,
            tuple(dialogue for dialogue, _ in rows),
            shared_prefix=self.shared_prefix,
            row_length=self.row_length,
            images=stacked,
            encoded=encoded,
        )

    def _nothing(self) -> TrainingBatch:
        """Return a micro-batch of one token, so that every process does every forward pass."""
        blank = TokenizedDialogue("nothing", (Segment((self.mllm.language.pad_id,)),))
        return batch_dialogues(self.mllm.language, (blank,), shared_prefix=False)


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
