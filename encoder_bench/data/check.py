"""`data check` and `data lint`: reading whole data folders, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.fetch import known_version
from encoder_bench.data.folder import DataFolder, check_disjoint
from encoder_bench.data.images import fingerprints, load_image, near_duplicates, same_files
from encoder_bench.data.lint import Finding, lint_samples
from encoder_bench.data.sample import Sample, Split

_SHOWN = 3


@dataclass(slots=True)
class CheckedFolder:
    """Lines to print, and the problems among them."""

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
    """Read both splits of all tasks, as a run would, and count missing images.

    The folder is opened so that missing images are no error; those that are there are decoded on
    request.
    """
    found = CheckedFolder()
    samples: dict[Split, list[Sample]] = {"train": [], "test": []}
    for name, split, read in _splits(folder, tasks):
        if isinstance(read, DataError):
            found.problem(str(read))
            continue
        images = len({sample.image_id for sample in read})
        found.lines.append(f"{name:<12} {split:<6} {len(read):>7} samples {images:>7} images")
        samples[split] += read
    found.lines += [f"{name} is {version}" for name, version in folder.versions().items()]
    if folder.missing:
        first = next(iter(folder.missing.values()))
        found.problem(f"{len(folder.missing)} images are missing, the first: {first}")
    if all(samples.values()):
        try:
            check_disjoint(samples["train"], samples["test"])
            found.lines.append("training and test share no image")
        except DataError as error:
            found.problem(str(error))
    if decode_images:
        paths = _files(samples["train"] + samples["test"])
        with reporter.phase("images", len(paths), "images") as phase:
            for path in paths:
                try:
                    load_image(path)
                except DataError as error:
                    found.problem(str(error))
                phase.advance()
        found.lines.append(f"{len(paths)} images decoded")
    return found


def lint_folder(
    folder: DataFolder,
    tasks: Mapping[str, TaskRecipe],
    *,
    compare_images: bool,
    reporter: Reporter,
) -> tuple[list[Finding], list[str]]:
    """Return the findings of every task, and a line for each split that could not be read.

    The folder is opened so that missing images are no error; those that are there are compared on
    request, for overlap, near duplicates and damage.
    """
    findings: list[Finding] = []
    skipped: list[str] = []
    samples: dict[Split, list[Sample]] = {"train": [], "test": []}
    for name, split, read in _splits(folder, tasks):
        if isinstance(read, DataError):
            skipped.append(f"{name} {split}: {read}")
            continue
        samples[split] += read
        if split == "test":
            findings += lint_samples(name, read)
            findings += _version_findings(folder, name, tasks[name])
    findings += _unreadable(list(folder.missing.values()), "missing")
    if compare_images:
        findings += _image_findings(samples["train"], samples["test"], reporter)
    return findings, skipped


def _splits(
    folder: DataFolder, tasks: Mapping[str, TaskRecipe]
) -> Iterator[tuple[str, Split, list[Sample] | DataError]]:
    splits: tuple[Split, ...] = ("train", "test")
    for name, recipe in tasks.items():
        for split in splits:
            try:
                yield (
                    name,
                    split,
                    folder.samples(name, reader=recipe.reader, source=recipe.source, split=split),
                )
            except DataError as error:
                yield name, split, error


def _files(samples: list[Sample]) -> list[Path]:
    return sorted({sample.image_path for sample in samples if sample.image_path.is_file()})


def _version_findings(folder: DataFolder, task: str, recipe: TaskRecipe) -> list[Finding]:
    path = folder.files.find("gvtbench", f"{recipe.source}.json")
    known = known_version(path) if path is not None and recipe.reader == "gvtbench" else None
    if path is None or known is None or not known.caution:
        return []
    return [Finding(task, "version", f"{path.name} is {known.name}: {known.caution}")]


def _image_findings(train: list[Sample], test: list[Sample], reporter: Reporter) -> list[Finding]:
    found: list[tuple[str, str]] = []
    shared = sorted({s.image_id for s in train} & {s.image_id for s in test}, key=str)
    if shared:
        message = f"{len(shared)} images are in train and test by id, the first {shared[0]}"
        found.append(("overlap", message))
    ours, theirs = _files(train), _files(test)
    read, unreadable = fingerprints(sorted({*ours, *theirs}), reporter)
    trained, tested = (
        {path: read[path] for path in paths if path in read} for paths in (ours, theirs)
    )
    pairs = same_files(trained, tested)
    if pairs:
        first = " and ".join(path.name for path in pairs[0])
        message = f"{len(pairs)} test images have the bytes of a training image, the first {first}"
        found.append(("overlap", message))
    near = near_duplicates(trained, tested)
    if near:
        one, other, bits = near[0]
        count = len({path for _, path, _ in near})
        message = f"{count} test images nearly equal a training image, the first pair {one.name} "
        found.append(("near-duplicate", f"{message}and {other.name}, {bits} of 256 bits apart"))
    return [
        *_unreadable(unreadable, "unreadable"),
        *(Finding("images", kind, message) for kind, message in found),
    ]


def _unreadable(lines: list[str], word: str) -> list[Finding]:
    more = len(lines) - _SHOWN
    shown = [*lines[:_SHOWN], *([f"and {more} more {word} images"] if more > 0 else [])]
    return [Finding("images", "unreadable", line) for line in shown]
