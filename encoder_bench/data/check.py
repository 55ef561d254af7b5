"""`data check` and `data lint`: reading whole data folders, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.fetch import known_version
from encoder_bench.data.folder import DataFolder, check_disjoint
from encoder_bench.data.images import fingerprints, load_image, near_duplicates, same_files
from encoder_bench.data.lint import Finding, lint_samples
from encoder_bench.data.sample import Sample, Split

PROBLEM = "PROBLEM  "
_SHOWN = 3
_Read = Iterator[tuple[str, Split, list[Sample] | DataError]]


def check_folder(
    folder: DataFolder, tasks: Mapping[str, TaskRecipe], *, decode: bool, reporter: Reporter
) -> Iterator[str]:
    """Read both splits of all tasks, as a run would, and yield lines; problems begin with PROBLEM.

    The folder is opened so that missing images are no error but counted; those that are there are
    decoded on request.
    """
    samples: dict[Split, list[Sample]] = {"train": [], "test": []}
    for name, split, read in _splits(folder, tasks):
        if isinstance(read, DataError):
            yield f"{PROBLEM}{read}"
            continue
        images = len({sample.image_id for sample in read})
        yield f"{name:<12} {split:<6} {len(read):>7} samples {images:>7} images"
        samples[split] += read
    for name, version in folder.versions().items():
        yield f"{name} is {version}"
    if missing := list(folder.files.missing.values()):
        yield f"{PROBLEM}{len(missing)} images are missing, the first: {missing[0]}"
    if all(samples.values()):
        try:
            check_disjoint(samples["train"], samples["test"])
            yield "training and test share no image"
        except DataError as error:
            yield f"{PROBLEM}{error}"
    if decode:
        paths = _files(samples["train"] + samples["test"])
        with reporter.phase("images", len(paths), "images") as phase:
            for path in paths:
                try:
                    load_image(path)
                except DataError as error:
                    yield f"{PROBLEM}{error}"
                phase.advance()
        yield f"{len(paths)} images decoded"


def lint_folder(
    folder: DataFolder, tasks: Mapping[str, TaskRecipe], *, compare: bool, reporter: Reporter
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
            path = folder.files.find("gvtbench", f"{tasks[name].source}.json")
            known = known_version(path) if path and tasks[name].reader == "gvtbench" else None
            if path and known and known.caution:
                message = f"{path.name} is {known.name}: {known.caution}"
                findings.append(Finding(name, "version", message))
    findings += _unreadable(list(folder.files.missing.values()), "missing")
    if compare:
        findings += _image_findings(samples["train"], samples["test"], reporter)
    return findings, skipped


def _splits(folder: DataFolder, tasks: Mapping[str, TaskRecipe]) -> _Read:
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


def _image_findings(
    train: list[Sample], test: list[Sample], reporter: Reporter
) -> Iterator[Finding]:
    ours, theirs = _files(train), _files(test)
    read, unreadable = fingerprints(sorted({*ours, *theirs}), reporter)
    yield from _unreadable(unreadable, "unreadable")
    shared = sorted({s.image_id for s in train} & {s.image_id for s in test}, key=str)
    if shared:
        message = f"{len(shared)} images are in train and test by id, the first {shared[0]}"
        yield Finding("images", "overlap", message)
    halves = [{path: read[path] for path in paths if path in read} for paths in (ours, theirs)]
    if pairs := same_files(*halves):
        first = " and ".join(path.name for path in pairs[0])
        message = f"{len(pairs)} test images have the bytes of a training image, the first {first}"
        yield Finding("images", "overlap", message)
    if near := near_duplicates(*halves):
        one, other, bits = near[0]
        count = len({path for _, path, _ in near})
        message = f"{count} test images nearly equal a training image, the first pair {one.name} "
        message += f"and {other.name}, {bits} of 256 bits apart"
        yield Finding("images", "near-duplicate", message)


def _unreadable(lines: list[str], word: str) -> list[Finding]:
    more = len(lines) - _SHOWN
    shown = [*lines[:_SHOWN], *([f"and {more} more {word} images"] if more > 0 else [])]
    return [Finding("images", "unreadable", line) for line in shown]
