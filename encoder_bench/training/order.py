"""Which images and questions each step sees: a pure function of seed, stage and step.

What belongs here: order. It keeps no state, so that a resumed run, or one on another number of
processes, goes on with exactly the samples that it would have seen.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from encoder_bench.base.hashing import hash_text
from encoder_bench.data.sample import Sample


@dataclass(frozen=True, slots=True)
class ImageSamples:
    """All training samples of one image."""

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
    """The order of one stage: epochs are permutations, one after the other, without a gap."""

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
        """Return the images of a step, each with the samples that it teaches this time.

        Args:
            number: from 0.
        """
        first = number * self._images_per_step
        return [self._visit(first + offset) for offset in range(self._images_per_step)]

    def _visit(self, position: int) -> ImageSamples:
        epoch, place = divmod(position, len(self._groups))
        group = self._groups[self._permutation(epoch)[place]]
        rng = self._random("samples", str(epoch), str(group.image_id))
        chosen = _evenly(group.samples, self._samples_per_image, rng)
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


def _evenly(samples: Sequence[Sample], number: int, rng: random.Random) -> tuple[Sample, ...]:
    """Return at most `number` samples, taking one of each task in turn."""
    by_task: dict[str, list[Sample]] = {}
    for sample in rng.sample(samples, len(samples)):
        by_task.setdefault(sample.task, []).append(sample)
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_task.values()))
    return tuple(itertools.islice((sample for sample in rounds if sample is not None), number))
