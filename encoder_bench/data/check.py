"""`data check` and `data lint`: reading whole data folders, and what is wrong with them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.fetch import known_version
from encoder_bench.data.folder import DataFolder, check_disjoint
from encoder_bench.data.images import fingerprints, load_image, near_duplicates, same_files
from encoder_bench.data.lint import Finding, lint_samples
from encoder_bench.data.sample import Split
from encoder_bench.data.sample_table import SampleTable

PROBLEM = "PROBLEM  "
_SHOWN = 3
_Read = Iterator[tuple[str, Split, SampleTable | DataError]]


def check_folder(
    folder: DataFolder, tasks: Mapping[str, TaskRecipe], *, decode: bool, reporter: Reporter
) -> Iterator[str]:
    """Read both splits of all tasks, as a run would, and yield lines; problems begin with PROBLEM.

    The folder is opened so that missing images are no error but counted; those that are there are
    decoded on request.
    """
    parts: dict[Split, list[SampleTable]] = {"train": [], "test": []}
    for name, split, read in _splits(folder, tasks):
        if isinstance(read, DataError):
            yield f"{PROBLEM}{read}"
            continue
        images = len(read.images())
        yield f"{name:<12} {split:<6} {len(read):>7} samples {images:>7} images"
        parts[split].append(read)
    for name, version in folder.versions().items():
        yield f"{name} is {version}"
    train, test = (SampleTable.joined(parts[split]) for split in ("train", "test"))
    if missing := [*(test.missing() | train.missing()).values()]:
        yield f"{PROBLEM}{len(missing)} images are missing, the first: {missing[0]}"
    if train and test:
        try:
            check_disjoint(train, test)
            yield "training and test share no image"
        except DataError as error:
            yield f"{PROBLEM}{error}"
    if decode:
        paths = sorted({*_files(train), *_files(test)})
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
    parts: dict[Split, list[SampleTable]] = {"train": [], "test": []}
    for name, split, read in _splits(folder, tasks):
        if isinstance(read, DataError):
            skipped.append(f"{name} {split}: {read}")
            continue
        parts[split].append(read)
        if split == "test":
            findings += lint_samples(name, read)
            path = folder.files.find("gvtbench", f"{tasks[name].source}.json")
            known = known_version(path) if path and tasks[name].reader == "gvtbench" else None
            if path and known and known.caution:
                message = f"{path.name} is {known.name}: {known.caution}"
                findings.append(Finding(name, "version", message))
    train, test = (SampleTable.joined(parts[split]) for split in ("train", "test"))
    findings += _unreadable([*(train.missing() | test.missing()).values()], "missing")
    if compare:
        findings += _image_findings(train, test, reporter)
    return findings, skipped


def _splits(folder: DataFolder, tasks: Mapping[str, TaskRecipe]) -> _Read:
    splits: tuple[Split, ...] = ("train", "test")
    for name, recipe in tasks.items():
        for split in splits:
            try:
                yield name, split, folder.task_samples(name, recipe, split)
            except DataError as error:
                yield name, split, error


def _files(samples: SampleTable) -> list[Path]:
    return sorted(filter(Path.is_file, samples.image_paths()))


def _image_findings(train: SampleTable, test: SampleTable, reporter: Reporter) -> Iterator[Finding]:
    ours, theirs = _files(train), _files(test)
    read, unreadable = fingerprints(sorted({*ours, *theirs}), reporter)
    yield from _unreadable(unreadable, "unreadable")
    shared = sorted({*train.images()} & {*test.images()}, key=str)
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
