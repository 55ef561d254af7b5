"""Which images a training will show is known before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from encoder_bench.training.batches import sample_images, stage_order, training_images
from tests.training.world import questions, recipe

SAMPLES = questions([Path(f"{number}.png") for number in range(11)])


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_images_are_those_of_the_steps_in_order(steps: int, processes: int) -> None:
    adapter = recipe(stage={"steps": steps})
    order, _ = stage_order(SAMPLES, adapter, 0, seed=3)
    for index in range(processes):
        shown = [
            samples[0].image_path
            for step in range(steps)
            for samples in order.step(step)[index::processes]
        ]
        found = training_images(SAMPLES, adapter, 3, index=index, processes=processes)
        assert found == list(dict.fromkeys(shown))


def test_the_first_images_are_shown_ones_in_the_order_of_samples() -> None:
    """What whitening is fitted to costs no image more, and is the first of all where all are."""
    paths = list(dict.fromkeys(sample.image_path for sample in SAMPLES))
    shown = training_images(SAMPLES, recipe(stage={"steps": 2}), 3)
    first = sample_images(SAMPLES, shown)
    assert first == sorted(shown, key=paths.index)
    assert len(first) == 8
    everything = training_images(SAMPLES, recipe(stage={"steps": 9}), 3)
    assert sample_images(SAMPLES, everything) == paths
    mixed = [Path("of a mixture.png"), *shown]
    assert sample_images(SAMPLES, mixed) == [*first, mixed[0]]


def test_stages_follow_each_other() -> None:
    adapter = recipe(stage={"steps": 1})
    second = adapter.stages[0].model_copy(update={"name": "second"})
    both = adapter.model_copy(update={"stages": (adapter.stages[0], second)})
    alone = [training_images(SAMPLES, adapter, seed, processes=1) for seed in (3, 4)]
    assert alone[0] != alone[1], "the order follows from the seed"
    found = training_images(SAMPLES, both, 3)
    assert found[:4] == alone[0]
    assert len(found) > 4
    assert len(set(found)) == len(found)
