"""COCO captions and instances, in the official files, with Karpathy's split where it is there.

Reference: Lin et al. 2014 (arXiv 1405.0312); Chen et al. 2015 (arXiv 1504.00325); the split is
`dataset_coco.json` of Karpathy and Fei-Fei 2015.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from encoder_bench.base.errors import DataError
from encoder_bench.data.files import (
    DataFiles,
    integer,
    numbered,
    read_json,
    rows_of,
    text,
    unique_ids,
)
from encoder_bench.data.sample import Sample, Split

_SPLIT_FILES: dict[Split, str] = {
    "train": "captions_train2017.json",
    "test": "captions_val2017.json",
}
KARPATHY = "dataset_coco.json"
SOURCES: dict[str, tuple[str, ...]] = {
    "captions": (),
    "karpathy": (f"coco/{KARPATHY}",),
    "coco2017": (f"coco/{_SPLIT_FILES['test']}",),
}
_KARPATHY_SPLITS: dict[Split, frozenset[str]] = {
    "train": frozenset({"train", "restval"}),
    "val": frozenset({"val"}),
    "test": frozenset({"test"}),
}


def captions_by_image(
    files: DataFiles, split: Split, source: str = "captions"
) -> dict[int, list[str]]:
    """Return each image's captions, in file order.

    Args:
        files: the data folder.
        split: train, val or test.
        source: `karpathy`, `coco2017`, or `captions` for the first of them that is there.

    Raises:
        DataError: files are missing or malformed, an id is duplicate or dangling, or the split
            is not there.
    """
    if source == "karpathy" or (source == "captions" and files.find("coco", KARPATHY)):
        return _karpathy_captions(files, split)
    if split not in _SPLIT_FILES:
        raise DataError(f"{files.root}: a {split} split of captions needs {KARPATHY}")
    path = files.require("coco", _SPLIT_FILES[split])
    images = unique_ids(path, rows_of(path, "images"))
    captions: dict[int, list[str]] = {image_id: [] for image_id in images}
    annotations = rows_of(path, "annotations")
    unique_ids(path, annotations)
    for where, row in numbered(path, annotations):
        image_id = integer(row, "image_id", where)
        if image_id not in captions:
            raise DataError(f"{where}: 'image_id' {image_id} is not among the file's images")
        captions[image_id].append(text(row, "caption", where))
    return {image_id: lines for image_id, lines in captions.items() if lines}


def _karpathy_captions(files: DataFiles, split: Split) -> dict[int, list[str]]:
    path = files.require("coco", KARPATHY)
    captions: dict[int, list[str]] = {}
    for where, row in numbered(path, rows_of(path, "images")):
        if text(row, "split", where) not in _KARPATHY_SPLITS[split]:
            continue
        image_id = integer(row, "cocoid", where)
        if image_id in captions:
            raise DataError(f"{where}: duplicate 'cocoid' {image_id}")
        captions[image_id] = [text(s, "raw", where) for s in row.get("sentences", [])]
        if not captions[image_id]:
            raise DataError(f"{where}: image {image_id} has no sentences")
    if not captions:
        raise DataError(f"{path}: its {split} split is empty")
    return captions


def caption_samples(files: DataFiles, task: str, source: str, split: Split) -> list[Sample]:
    """Return one sample an image for testing, and one a caption for training."""
    samples = []
    for image_id, lines in captions_by_image(files, split, source).items():
        path = files.image(image_id, f"{files.root} captions")
        targets = lines if split == "train" else lines[:1]
        for number, target in enumerate(targets):
            suffix = f"/{number}" if split == "train" else ""
            samples.append(
                Sample(f"{task}/{image_id}{suffix}", task, image_id, path, "", tuple(lines), target)
            )
    return samples


@dataclass(frozen=True, slots=True)
class Instances:
    """How many of each category are in each image, from an instances file.

    Attributes:
        categories: category names, in file order.
        counts: image id -> category name -> count; images without any object have an empty one.
        crowded: image ids with a crowd region, where a count is not exact.
    """

    categories: tuple[str, ...]
    counts: dict[int, Counter[str]]
    crowded: frozenset[int]


def read_instances(files: DataFiles, name: str = "instances_train2017.json") -> Instances:
    """Return the category counts of an instances file.

    Raises:
        DataError: missing, malformed, or an id is duplicate or dangling.
    """
    return instances_in(files.require("coco", name))


def instances_in(path: Path) -> Instances:
    """Return the category counts of a COCO-format instances file, wherever it lies.

    Raises:
        DataError: missing, malformed, or an id is duplicate or dangling.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: not an object")
    images = unique_ids(path, rows_of(path, "images"))
    categories = unique_ids(path, rows_of(path, "categories"))
    names = {key: text(row, "name", f"{path}, category {key}") for key, row in categories.items()}
    counts: dict[int, Counter[str]] = {image_id: Counter() for image_id in images}
    crowded = set()
    for where, row in numbered(path, rows_of(path, "annotations")):
        image_id, category = integer(row, "image_id", where), integer(row, "category_id", where)
        if image_id not in counts:
            raise DataError(f"{where}: 'image_id' {image_id} is not among the file's images")
        if category not in names:
            raise DataError(f"{where}: 'category_id' {category} is not among the file's categories")
        counts[image_id][names[category]] += 1
        if row.get("iscrowd"):
            crowded.add(image_id)
    return Instances(tuple(names.values()), counts, frozenset(crowded))
