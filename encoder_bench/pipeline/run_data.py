"""What a run reads: samples to train on and to test, which never share an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Reporter
from encoder_bench.pipeline.plan import RunPlan

if TYPE_CHECKING:
    from encoder_bench.data.folder import DataFolder
    from encoder_bench.data.sample import Sample
    from encoder_bench.tasks.task import TaskSamples


@dataclass(frozen=True, slots=True)
class RunData:
    """What a run reads: the folders, the training samples, and each task's test samples."""

    folder: DataFolder
    training_folder: DataFolder
    training: list[Sample]
    test: Mapping[str, TaskSamples]

    def images(self) -> list[Path]:
        """Return every image that the run shows to the encoder, each once."""
        samples = [*self.training, *(s for task in self.test.values() for s in task.samples)]
        return list(dict.fromkeys(sample.image_path for sample in samples))

    def training_description(self) -> dict[str, Any]:
        """Return the training folder's facts, and how many samples and images it gave."""
        images = {sample.image_id for sample in self.training}
        return self.training_folder.description() | {
            "training_samples": len(self.training),
            "training_images": len(images),
        }


def read_data(plan: RunPlan, reporter: Reporter) -> RunData:
    """Read a plan's samples and check that training and test share no image.

    Raises:
        DataError: files are missing or malformed, a split is empty, or images are shared.
    """
    from encoder_bench.data.folder import check_disjoint, open_data
    from encoder_bench.tasks.task import read_samples

    folder = open_data(plan.data, reporter=reporter)
    training_folder = (
        folder
        if plan.training_data == plan.data
        else open_data(plan.training_data, reporter, flag="--train-data")
    )
    with reporter.phase("data", len(plan.tasks) + len(plan.training_recipes), "sets") as phase:
        test: dict[str, TaskSamples] = {}
        for name, recipe in plan.tasks.items():
            test[name] = read_samples(folder, name, recipe, limit=plan.limit)
            phase.advance(test=f"{name} {len(test[name].samples)}")
        training: list[Sample] = []
        for name, recipe in plan.training_recipes.items():
            samples = training_folder.samples(
                name, reader=recipe.reader, source=recipe.source, split="train"
            )
            training += samples
            if name in test:
                test[name] = replace(test[name], training=samples)
            phase.advance(training=f"{name} {len(samples)}")
    if not training:
        raise DataError(f"--train-data {plan.training_data}: no training samples")
    check_disjoint(training, [sample for task in test.values() for sample in task.samples])
    return RunData(folder, training_folder, training, test)
