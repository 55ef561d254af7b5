"""COCO's captions and instances, NoCaps and Flickr30k, in their official files.

Reference: Lin et al. 2014 (arXiv 1405.0312); Chen et al. 2015 (arXiv 1504.00325); Karpathy and
Fei-Fei 2015 for the split in `dataset_coco.json` and `dataset_flickr30k.json`; Agrawal et al. 2019
(arXiv 1812.08658), `nocaps_val_4500_captions.json`; Young et al. 2014.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError, NoTrainSplitError
from encoder_bench.data.files import DataFiles
from encoder_bench.data.rows import AnnotationFile, Row, Rows, Text, read_rows, unique
from encoder_bench.data.sample import OFFICIAL_PART, Sample, Split

_KARPATHY = "dataset_coco.json"
_KARPATHY_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "restval"),
    "test": ("test",),
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


class _Image(Row):
    id: int
    file_name: str = ""
    domain: str = ""
    neg_category_ids: Any = None


class _Caption(Row):
    id: int
    image_id: int
    caption: Text


class _Sentence(Row):
    raw: Text


class _SplitImage(Row):
    split: Text
    sentences: Rows[_Sentence]
    cocoid: int | None = None
    filepath: str = ""
    filename: str = ""

    @property
    def lines(self) -> list[str]:
        """The captions."""
        return [sentence.raw for sentence in self.sentences]


class _Category(Row):
    id: int
    name: Text


class _Object(Row):
    image_id: int
    category_id: int
    iscrowd: bool | int | None = 0


def coco_samples(files: DataFiles, task: str, source: str, split: Split) -> Iterator[Sample]:
    """Yield one sample per image for testing, and one per caption for training."""
    karpathy = source == "karpathy" or (source == "captions" and files.find("coco", _KARPATHY))
    for number, captions, image in (_karpathy if karpathy else _coco2017)(files, split):
        lines = tuple(captions)
        if split == "train":
            for index, line in enumerate(lines):
                yield Sample(f"{task}/{number}/{index}", task, *image, "", lines, line)
        else:
            yield Sample(f"{task}/{number}", task, *image, "", lines, lines[0])


_Captioned = Iterator[tuple[int, list[str], tuple[int | str, Path]]]
"""Image number, captions, and the image's identity and file."""


def _coco2017(files: DataFiles, split: Split) -> _Captioned:
    part = OFFICIAL_PART[split]
    path = files.require("coco", f"captions_{part}2017.json")
    for where, row, lines in _official(path):
        yield row.id, lines, files.image(row.id, where, split=part, name=row.file_name)


def _karpathy(files: DataFiles, split: Split) -> _Captioned:
    path = files.require("coco", _KARPATHY)
    seen: set[int] = set()
    for where, row in _split_images(path, _KARPATHY_SPLITS[split]):
        if row.cocoid is None or row.cocoid in seen:
            raise DataError(f"{where}: {'duplicate' if row.cocoid in seen else 'no'} 'cocoid'")
        seen.add(row.cocoid)
        part = "train" if row.filepath.startswith("train") else "val"
        image = files.image(row.cocoid, where, split=part, name=row.filename)
        yield row.cocoid, row.lines, image
    if not seen:
        raise DataError(f"{path}: its {split} split is empty")


def _split_images(path: Path, splits: tuple[str, ...]) -> Iterator[tuple[str, _SplitImage]]:
    rows = read_rows(path, _SplitImage, "images")
    return ((where, row) for where, row in rows if row.split in splits)


def _official(path: Path) -> Iterator[tuple[str, _Image, list[str]]]:
    """Yield the images that have captions, with these in file order."""
    file = AnnotationFile(path)
    images = {row.id: row for _, row in unique(file.rows(_Image, "images"))}
    captions: dict[int, list[str]] = {number: [] for number in images}
    for where, row in unique(file.rows(_Caption, "annotations")):
        _known(where, "image_id", row.image_id, images)
        captions[row.image_id].append(row.caption)
    for number, lines in captions.items():
        if lines:
            yield f"{path}: image {number}", images[number], lines


def _known(where: str, field: str, value: int, known: dict[int, Any]) -> None:
    if value not in known:
        kind = "images" if field == "image_id" else "categories"
        raise DataError(f"{where}: '{field}' {value} is not among the file's {kind}")


def more_samples(files: DataFiles, task: str, source: str, split: Split) -> Iterator[Sample]:
    """Yield one sample per image of the public test captions of NoCaps or Flickr30k."""
    if split != "test":
        raise NoTrainSplitError(
            f"{files.root}: {source} is read for testing only; train on COCO captions"
        )
    path = files.require(*MORE_SOURCES[source][0].split("/"))
    found = (
        [(where, row.file_name, lines, row.domain) for where, row, lines in _official(path)]
        if source == "nocaps"
        else [(w, row.filename, row.lines, "") for w, row in _split_images(path, ("test",))]
    )
    for where, name, lines, domain in found:
        if not name:
            raise DataError(f"{where}: no file name")
        image = files.image(f"{source}/images/{name}", where)
        facets = {"domain": domain} if domain else {}
        yield Sample(f"{task}/{name}", task, *image, "", tuple(lines), lines[0], facets)


@dataclass(frozen=True, slots=True)
class Instances:
    """How many of each category are in each image, from an instances file.

    `names` and `counts` are by image id: the file name (empty where the file gives none), and the
    count by category name (empty for images without any object). In `crowded` images a count is
    not exact; a `federated` file does not say what an image lacks, as LVIS does not.
    """

    path: Path
    categories: tuple[str, ...]
    names: dict[int, str]
    counts: dict[int, Counter[str]]
    crowded: frozenset[int]
    federated: bool

    def image(self, files: DataFiles, number: int) -> tuple[int | str, Path]:
        """Return an image's identity and file, as `DataFiles.image` does."""
        split = "train" if "train" in self.path.name else "val"
        where = f"{self.path}: image {number}"
        return files.image(number, where, split=split, name=self.names[number])


def read_instances(path: Path) -> Instances:
    """Return the category counts of a COCO-format instances file."""
    file = AnnotationFile(path)
    images = {row.id: row for _, row in unique(file.rows(_Image, "images"))}
    categories = {row.id: row.name for _, row in unique(file.rows(_Category, "categories"))}
    counts: dict[int, Counter[str]] = {number: Counter() for number in images}
    crowded: set[int] = set()
    for where, row in file.rows(_Object, "annotations"):
        _known(where, "image_id", row.image_id, images)
        _known(where, "category_id", row.category_id, categories)
        counts[row.image_id][categories[row.category_id]] += 1
        if row.iscrowd:
            crowded.add(row.image_id)
    return Instances(
        path,
        categories=tuple(categories.values()),
        names={number: image.file_name for number, image in images.items()},
        counts=counts,
        crowded=frozenset(crowded),
        federated=next(iter(images.values())).neg_category_ids is not None,
    )
