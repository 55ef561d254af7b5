"""Reading a whole data folder to see that a run could: every task, both splits, every image.

What belongs here: what `encoder-bench data check` tells. Each problem is one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.folder import DataFolder, check_disjoint
from encoder_bench.data.images import load_image
from encoder_bench.data.sample import Sample, Split

_SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(slots=True)
class CheckedFolder:
    """What was found: lines for a person, and of these the problems."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def problem(self, line: str) -> None:
        """Add a problem."""
        self.lines.append(f"PROBLEM  {line}")
        self.problems.append(line)


def check_folder(
    folder: DataFolder,
    tasks: Mapping[str, TaskRecipe],
    *,
    decode_images: bool,
    reporter: Reporter,
) -> CheckedFolder:
    """Read all samples of the tasks and, where asked for, decode every image they use.

    Args:
        folder: the data.
        tasks: recipes by task name.
        decode_images: open every image.
        reporter: where progress goes.
    """
    found = CheckedFolder()
    samples: dict[Split, list[Sample]] = {"train": [], "test": []}
    for name, recipe in tasks.items():
        for split in _SPLITS:
            try:
                read = folder.samples(name, reader=recipe.reader, source=recipe.source, split=split)
            except DataError as error:
                found.problem(str(error))
                continue
            images = len({sample.image_id for sample in read})
            found.lines.append(f"{name:<12} {split:<6} {len(read):>7} samples {images:>7} images")
            samples[split] += read
    found.lines += [f"{name} is {version}" for name, version in folder.versions().items()]
    try:
        check_disjoint(samples["train"], samples["test"])
        found.lines.append("training and test share no image")
    except DataError as error:
        found.problem(str(error))
    if decode_images:
        _decode(samples["train"] + samples["test"], found, reporter)
    return found


def _decode(samples: list[Sample], found: CheckedFolder, reporter: Reporter) -> None:
    paths = sorted({sample.image_path for sample in samples})
    with reporter.phase("images", len(paths), "images") as phase:
        for path in paths:
            try:
                load_image(path)
            except DataError as error:
                found.problem(str(error))
            phase.advance()
    found.lines.append(f"{len(paths)} images looked at")
