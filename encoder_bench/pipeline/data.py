"""What a run reads: test samples, training samples, and the mixtures of its stages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.progress import Reporter
from encoder_bench.data.folder import DataFolder, check_disjoint, open_data
from encoder_bench.data.mixture import Mixture, open_mixture
from encoder_bench.data.readers.vqa import HELD_OUT_SHARE, holds_out
from encoder_bench.data.sample_table import SampleTable
from encoder_bench.pipeline.plan import RunPlan
from encoder_bench.tasks.task import TaskSamples, read_samples


@dataclass(frozen=True, slots=True)
class RunData:
    """What a run reads: the folders, the training samples, and each task's test samples.

    `mixtures` are by the name that stages give them; `staged` is the name of each stage's, if any.
    """

    folder: DataFolder
    training_folder: DataFolder
    training: SampleTable
    test: Mapping[str, TaskSamples]
    mixtures: Mapping[str, Mixture] = field(default_factory=dict)
    staged: Sequence[str | None] = ()

    def images(self) -> list[Path]:
        """Return every image that the run shows to the encoder, each once."""
        paths: dict[Path, None] = {}
        for table in (self.training, _tested(self.test)):
            paths |= dict.fromkeys(table.image_paths())
        for mixture in self.mixtures.values():
            paths |= dict.fromkeys(mixture.images())
        return list(paths)

    def training_fingerprint(self) -> str:
        """Return the hash of the folder that samples are from, and of each stage's mixture."""
        if not self.mixtures:
            return self.training_folder.fingerprint()
        parts = [self.mixtures[name].fingerprint() if name else "" for name in self.staged]
        return hash_text(*parts, *([self.training_folder.fingerprint()] if self.training else []))

    def training_description(self) -> dict[str, Any]:
        """Return the facts of the training folder and of each mixture, and what they gave."""
        folder = self.training_folder.description() if self.training else {}
        counts = {
            "training_samples": len(self.training),
            "training_images": len(self.training.images()),
        }
        if not self.mixtures:
            return folder | counts
        names = [Path(name).stem if name else self.training_folder.name for name in self.staged]
        described = [self.mixtures[name].description() for name in self.mixtures]
        return (
            folder
            | counts
            | {
                "name": " then ".join(dict.fromkeys(names)),
                "fingerprint": self.training_fingerprint(),
                "folder": self.training_folder.name,
                "mixtures": [about | {"name": Path(about["name"]).stem} for about in described],
            }
        )


def read_data(plan: RunPlan, reporter: Reporter) -> RunData:
    """Read a plan's samples, and check that they can be scored and share no image with training.

    Raises:
        DataError: files are missing or malformed, a split is empty, a sample occurs twice, an
            answer cannot be parsed, or images are shared.
    """
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
            test[name].check()
            phase.advance(test=f"{name} {len(test[name].samples)}")
        parts: list[SampleTable] = []
        for name, recipe in plan.training_recipes.items():
            try:
                samples = training_folder.task_samples(name, recipe, "train")
            except DataError as error:
                if name in plan.tasks:
                    raise
                raise DataError(
                    f"{error}; the adapter trains on {name} too, whatever --tasks tests: pass "
                    "--adapter FILE, a recipe whose stages leave it out, or other --train-data"
                ) from error
            parts.append(samples)
            if name in test:
                test[name] = replace(test[name], training=samples)
            phase.advance(training=f"{name} {len(samples)}")
    tests = {  # whole, whatever the limit: the trained model may be asked the rest later
        name: folder.task_samples(name, recipe, "test")
        for name, recipe in plan.tasks.items()
        if plan.mixtures or training_folder is not folder
    }
    mixtures = {
        name: open_mixture(name, training_folder.root, reporter, tests=tests)
        for name in plan.mixtures
    }
    for mixture in mixtures.values():
        for line in _left_out(mixture):
            reporter.warn(line)
    pictured = any(list(islice(mixture.images(), 1)) for mixture in mixtures.values())
    if mixtures and not parts and not pictured:
        raise DataError(f"{', '.join(mixtures)}: no row shows an image, so no encoder is compared")
    training = SampleTable.joined(parts)
    if not training and not mixtures:
        raise DataError(f"--train-data {plan.training_data}: no training samples")
    check_disjoint(training, _tested(test))
    if training_folder is not folder:
        check_disjoint(training, SampleTable.joined([*tests.values()]))
        _warn_of_held_out(training_folder, plan, reporter)
    staged = [stage.mixture for stage in plan.adapter.stages]
    return RunData(folder, training_folder, training, test, mixtures, staged)


def _warn_of_held_out(folder: DataFolder, plan: RunPlan, reporter: Reporter) -> None:
    """Say that a folder for training keeps images for a test set that nobody asks for."""
    readers = {recipe.reader for recipe in plan.training_recipes.values()}
    if "vqav2" in readers and holds_out(folder.files):
        reporter.warn(
            f"--train-data {plan.training_data}: {HELD_OUT_SHARE:.0%} of the images with VQAv2 "
            "questions are kept out of training, as the test set of a folder without validation "
            "questions; put those beside them, or train and test on one folder"
        )


def _left_out(mixture: Mixture) -> Iterator[str]:
    """Yield a line for each source whose rows are not all used: how many, why, and the first."""
    for part in mixture.parts:
        about, overlap = part.about, part.about["overlap"]
        why = [
            f"{entry['count']} {reason} (the first is {entry['first'][0]})"
            for reason, entry in about["skipped"].items()
        ]
        if overlap["rows"]:
            why.append(f"{overlap['rows']} show a test image (the first is {overlap['first'][0]})")
        if why:
            skipped = sum(entry["count"] for entry in about["skipped"].values()) + overlap["rows"]
            left = (
                f"{about['read'] - skipped} of {about['read']} rows of {part.source.name} are left"
            )
            yield f"mixture {Path(mixture.name).stem}: {left}: {'; '.join(why)}"


def _tested(test: Mapping[str, TaskSamples]) -> SampleTable:
    return SampleTable.joined([SampleTable.of(task.samples) for task in test.values()])
