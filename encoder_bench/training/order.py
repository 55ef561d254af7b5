"""The order of training: what each step of a stage shows, known before the first one."""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from types import MappingProxyType

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.recipes import AdapterRecipe
from encoder_bench.data.mixture import Mixture
from encoder_bench.data.sample import Conversation, Sample
from encoder_bench.data.sample_table import ImageGroups, SampleTable

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
    epochs = stage.epochs or 1.0
    return order, stage.steps or math.ceil(epochs * len(rows) / stage.images_per_step)


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

    With `processes` those of the share of process `index`.

    Raises:
        TrainingError: a stage has no samples.
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
