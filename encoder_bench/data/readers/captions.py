"""COCO's captions and instances, NoCaps and Flickr30k, in their official files.

Reference: Lin et al. 2014 (arXiv 1405.0312); Chen et al. 2015 (arXiv 1504.00325); Karpathy and
Fei-Fei 2015 for the split in `dataset_coco.json` and `dataset_flickr30k.json`; Agrawal et al. 2019
(arXiv 1812.08658), `nocaps_val_4500_captions.json`; Young et al. 2014.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from encoder_bench.base.errors import DataError
from encoder_bench.data.files import (
    DataFiles,
    Row,
    integer,
    numbered,
    tables_of,
    text,
    texts,
    unique_ids,
)
from encoder_bench.data.sample import Sample, Split

_KARPATHY = "dataset_coco.json"
_COCO_PARTS: dict[Split, str] = {"train": "train", "test": "val"}
_KARPATHY_SPLITS: dict[Split, frozenset[str]] = {
    "train": frozenset({"train", "restval"}),
    "val": frozenset({"val"}),
    "test": frozenset({"test"}),
}
COCO_SOURCES: dict[str, tuple[str, ...]] = {
    "captions": (),
    "karpathy": (f"coco/{_KARPATHY}",),
    "coco2017": ("coco/captions_val2017.json",),
}
"""`captions` is the first of the other two that is there."""
MORE_SOURCES = {
    "nocaps": ("nocaps/nocaps_val_4500_captions.json",),
    "flickr30k": ("flickr30k/dataset_flickr30k.json",),
}


def coco_samples(files: DataFiles, task: str, source: str, split: Split) -> list[Sample]:
    """Return one sample per image for testing, and one per caption for training."""
    karpathy = source == "karpathy" or (source == "captions" and files.find("coco", _KARPATHY))
    samples = []
    for number, lines, image in (_karpathy if karpathy else _coco2017)(files, split):
        if split == "train":
            for index, line in enumerate(lines):
                samples.append(Sample(f"{task}/{number}/{index}", task, *image, "", lines, line))
        else:
            samples.append(Sample(f"{task}/{number}", task, *image, "", lines, lines[0]))
    return samples


_Captioned = Iterator[tuple[int, tuple[str, ...], tuple[int | str, Path]]]
"""Image number, captions, and the image's identity and file."""


def _coco2017(files: DataFiles, split: Split) -> _Captioned:
    if split not in _COCO_PARTS:
        raise DataError(f"{files.root}: a {split} split of captions needs {_KARPATHY}")
    part = _COCO_PARTS[split]
    path = files.require("coco", f"captions_{part}2017.json")
    for number, (row, lines) in _grouped(path).items():
        where = f"{path}, image {number}"
        yield number, lines, files.image(number, where, split=part, name=_file_name(row, where))


def _grouped(path: Path) -> dict[int, tuple[Row, tuple[str, ...]]]:
    """Return the image rows that have captions, with these in file order."""
    image_rows, annotations = tables_of(path, "images", "annotations")
    images = unique_ids(path, image_rows)
    unique_ids(path, annotations)
    captions: dict[int, list[str]] = {number: [] for number in images}
    for where, row in numbered(path, annotations):
        number = integer(row, "image_id", where)
        if number not in captions:
            raise DataError(f"{where}: 'image_id' {number} is not among the file's images")
        captions[number].append(text(row, "caption", where))
    return {number: (images[number], tuple(lines)) for number, lines in captions.items() if lines}


def _file_name(row: Row, where: str) -> str:
    return text(row, "file_name", where) if "file_name" in row else ""


def _karpathy(files: DataFiles, split: Split) -> _Captioned:
    path = files.require("coco", _KARPATHY)
    seen: set[int] = set()
    for where, row in numbered(path, *tables_of(path, "images")):
        if text(row, "split", where) not in _KARPATHY_SPLITS[split]:
            continue
        number = integer(row, "cocoid", where)
        if number in seen:
            raise DataError(f"{where}: duplicate 'cocoid' {number}")
        seen.add(number)
        part = "train" if str(row.get("filepath")).startswith("train") else "val"
        image = files.image(number, where, split=part, name=str(row.get("filename", "")))
        yield number, texts(row, "sentences", "raw", where), image
    if not seen:
        raise DataError(f"{path}: its {split} split is empty")


def more_samples(files: DataFiles, task: str, source: str, split: Split) -> list[Sample]:
    """Return one sample per image of the public test captions of NoCaps or Flickr30k."""
    if split != "test":
        raise DataError(f"{files.root}: {source} is read for testing only; train on COCO captions")
    samples = []
    for name, lines, domain, where in (_nocaps if source == "nocaps" else _flickr30k)(files):
        image = files.image(f"{source}/images/{name}", where)
        facets = {"domain": domain} if domain else {}
        samples.append(Sample(f"{task}/{name}", task, *image, "", lines, lines[0], facets))
    return samples


def _nocaps(files: DataFiles) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    path = files.require("nocaps", "nocaps_val_4500_captions.json")
    for number, (row, lines) in _grouped(path).items():
        where = f"{path}, image {number}"
        yield text(row, "file_name", where), lines, str(row.get("domain", "")), where


def _flickr30k(files: DataFiles) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    path = files.require("flickr30k", "dataset_flickr30k.json")
    for where, row in numbered(path, *tables_of(path, "images")):
        if text(row, "split", where) == "test":
            yield text(row, "filename", where), texts(row, "sentences", "raw", where), "", where


@dataclass(frozen=True, slots=True)
class Instances:
    """How many of each category are in each image, from an instances file.

    Attributes:
        path: the file.
        categories: category names, in file order.
        names: image id -> file name; empty where the file gives none.
        counts: image id -> category name -> count; images without any object have an empty one.
        crowded: image ids with a crowd region, where a count is not exact.
        federated: the file does not say what an image lacks, as LVIS does not.
    """

    path: Path
    categories: tuple[str, ...]
    names: dict[int, str]
    counts: dict[int, Counter[str]]
    crowded: frozenset[int]
    federated: bool

    def image(self, files: DataFiles, number: int) -> tuple[int | str, Path]:
        """Return an image's identity and file.

        Raises:
            DataError: it is not in the data folder.
        """
        split = "train" if "train" in self.path.name else "val"
        where = f"{self.path}, image {number}"
        return files.image(number, where, split=split, name=self.names[number])


def read_instances(path: Path) -> Instances:
    """Return the category counts of a COCO-format instances file."""
    image_rows, category_rows, annotations = tables_of(path, "images", "categories", "annotations")
    images, categories = unique_ids(path, image_rows), unique_ids(path, category_rows)
    labels = {key: text(row, "name", f"{path}, category {key}") for key, row in categories.items()}
    counts: dict[int, Counter[str]] = {number: Counter() for number in images}
    crowded = set()
    for where, row in numbered(path, annotations):
        number, category = integer(row, "image_id", where), integer(row, "category_id", where)
        if number not in counts:
            raise DataError(f"{where}: 'image_id' {number} is not among the file's images")
        if category not in labels:
            raise DataError(f"{where}: 'category_id' {category} is not among the file's categories")
        counts[number][labels[category]] += 1
        if row.get("iscrowd"):
            crowded.add(number)
    return Instances(
        path,
        categories=tuple(labels.values()),
        names={key: _file_name(row, f"{path}, image {key}") for key, row in images.items()},
        counts=counts,
        crowded=frozenset(crowded),
        federated="neg_category_ids" in image_rows[0],
    )
