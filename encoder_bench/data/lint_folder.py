"""All findings on a data folder: its questions, its known versions, and its images.

What belongs here: which samples are looked at. A missing image is a finding here, not an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.folder import DataFolder
from encoder_bench.data.lint import Finding, lint_samples
from encoder_bench.data.sample import Sample, Split
from encoder_bench.data.similarity import Fingerprint, fingerprints, near_duplicates, same_files
from encoder_bench.data.versions import known_version

_SHOWN = 3


def lint_folder(
    folder: DataFolder,
    tasks: Mapping[str, TaskRecipe],
    *,
    look_at_images: bool,
    reporter: Reporter,
) -> tuple[list[Finding], list[str]]:
    """Return the findings of every task, and a line for each task that could not be read.

    Args:
        folder: the data; its images need not be there.
        tasks: recipes by name.
        look_at_images: read every image, for overlap, near-duplicates and damage.
        reporter: where progress goes.
    """
    findings: list[Finding] = []
    skipped: list[str] = []
    by_split: dict[Split, list[Sample]] = {"train": [], "test": []}
    with folder.tolerating_missing_images() as missing:
        for name, recipe in tasks.items():
            for split, kept in by_split.items():
                try:
                    samples = folder.samples(
                        name, reader=recipe.reader, source=recipe.source, split=split
                    )
                except DataError as error:
                    skipped.append(f"{name} {split}: {error}")
                    continue
                kept += samples
                if split == "test":
                    findings += lint_samples(name, samples)
                    findings += _versions(folder, name, recipe)
    findings += [Finding("images", "unreadable", line) for line in _shortened(missing, "missing")]
    if look_at_images:
        findings += _image_findings(by_split["train"], by_split["test"], reporter)
    return findings, skipped


def _versions(folder: DataFolder, task: str, recipe: TaskRecipe) -> list[Finding]:
    if recipe.reader != "gvtbench":
        return []
    path = folder.annotation_file("gvtbench", f"{recipe.source}.json")
    if path is None:
        return []
    known = known_version(path)
    if known is None or not known.caution:
        return []
    return [Finding(task, "version", f"{path.name} is {known.name}: {known.caution}")]


def _image_findings(train: list[Sample], test: list[Sample], reporter: Reporter) -> list[Finding]:
    findings = []
    shared = sorted({s.image_id for s in train} & {s.image_id for s in test}, key=str)
    if shared:
        findings.append(
            Finding("images", "overlap", f"{len(shared)} image ids are in train and test, the "
                    f"first {shared[0]}")
        )  # fmt: skip
    paths = {
        split: sorted({s.image_path for s in samples if s.image_path.is_file()})
        for split, samples in (("train", train), ("test", test))
    }
    read, unreadable = fingerprints(sorted({*paths["train"], *paths["test"]}), reporter)
    findings += [
        Finding("images", "unreadable", line) for line in _shortened(unreadable, "unreadable")
    ]
    ours: dict[str, dict[Path, Fingerprint]] = {
        split: {path: read[path] for path in chosen if path in read}
        for split, chosen in paths.items()
    }
    pairs = same_files(ours["train"], ours["test"])
    if pairs:
        first = " and ".join(path.name for path in pairs[0])
        findings.append(
            Finding("images", "overlap", f"{len(pairs)} test images have the bytes of a training "
                    f"image, the first pair {first}")
        )  # fmt: skip
    near = near_duplicates(ours["train"], ours["test"])
    if near:
        first = f"{near[0][0].name} and {near[0][1].name}, {near[0][2]} of 256 bits apart"
        count = len({path for _, path, _ in near})
        findings.append(
            Finding("images", "near-duplicate", f"{count} test images nearly equal a training "
                    f"image, the first pair {first}")
        )  # fmt: skip
    return findings


def _shortened(lines: list[str], word: str) -> list[str]:
    if len(lines) <= _SHOWN:
        return list(lines)
    return [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more {word} images"]
