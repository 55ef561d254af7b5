"""Labelled images for probes, of class folders, instances files and the Hub; boxes and captions.

An image is in one half only, as its bytes decide.
"""

import contextlib
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_file, hash_text
from encoder_bench.base.paths import visible
from encoder_bench.base.progress import Reporter
from encoder_bench.data.folder import DataFolder, is_scenes, open_data
from encoder_bench.data.hub import open_rows
from encoder_bench.data.images import load_image
from encoder_bench.data.readers.captions import read_instances
from encoder_bench.data.rows import AnnotationFile, Row
from encoder_bench.data.sample import Split

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_TEST_FOLDERS = ("test", "val", "validation")
_TEST_SHARE = 0.25
_INSTANCES = ("instances_train2017.json", "instances_val2017.json")
_SPLITS: tuple[Split, ...] = ("test", "train")
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


class LabelledImage(NamedTuple):
    """One image (opened in RGB) and the indices of its classes; `name` is unique.

    `key` is its name within the data, wherever these are.
    """

    name: str
    open: Callable[[], Image.Image]
    classes: tuple[int, ...]
    key: str


class LabelledSet(NamedTuple):
    """Images to learn from (`train`) and to be measured on (`test`).

    `several` says whether an image may have several classes, or none.
    """

    name: str
    class_names: tuple[str, ...]
    several: bool
    train: tuple[LabelledImage, ...]
    test: tuple[LabelledImage, ...]


class HubColumns(NamedTuple):
    """Which columns and splits of a data set hold what."""

    image: str = "image"
    label: str = "label"
    train: str = "train"
    test: str = "test"


def read_labelled(
    data: str, reporter: Reporter, *, columns: HubColumns | None = None, limit: int | None = None
) -> LabelledSet:
    """Return the labelled images that `--data` names.

    That is `scenes`; a folder of class folders, whole or under `train/` and `test/` (or `val/`); a
    folder with COCO instances files; or `hub:NAME` of `datasets`. A limit, of each half, chooses by
    a hash of the images' keys.

    Raises:
        DataError: nothing there has labels, a half is empty, or an image is in both.
    """
    root = Path(data)
    if data.startswith("hub:"):
        found = _from_hub(data.removeprefix("hub:"), columns or HubColumns())
    elif is_scenes(data):
        found = _from_instances(data, reporter)
    elif not root.is_dir():
        raise DataError(f"--data {data}: no such folder; a Hub data set is hub:NAME")
    elif any(next(root.rglob(name), None) for name in _INSTANCES):
        found = _from_instances(data, reporter)
    else:
        found = _from_class_folders(root)
    halves = []
    for half, images in (("train", found.train), ("test", found.test)):
        if not images:
            raise DataError(f"--data {data}: no labelled {half} images")
        chosen = sorted(images, key=lambda image: hash_text("probe", image.key))[:limit]
        halves.append(tuple(sorted(chosen, key=lambda image: image.name)))
    return found._replace(train=halves[0], test=halves[1])


def _from_class_folders(root: Path) -> LabelledSet:
    test = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    if (root / "train").is_dir() and test is not None:
        train, held_out = _by_class(root / "train"), _by_class(test)
        unknown = sorted(held_out.keys() - train.keys())
        if unknown:
            raise DataError(f"{test}: class '{unknown[0]}' is not in {root / 'train'}")
        seen = {hash_file(path): path for files in train.values() for path in files}
        for path in itertools.chain(*held_out.values()):
            twin = seen.get(hash_file(path))
            if twin is not None:
                raise DataError(f"{path}: the same image as {twin}, which is in the training half")
    else:
        files = _by_class(root)
        if len(files) < 2:
            raise DataError(
                f"{root}: fewer than two class folders with images, and no instances file"
            )
        tested = {p for paths in files.values() for p in paths if _is_held_out(hash_file(p))}
        train, held_out = (
            {name: [p for p in paths if (p in tested) == half] for name, paths in files.items()}
            for half in (False, True)
        )
    class_names = list(train)
    halves = (
        tuple(
            _image(path, (class_names.index(name),), path.relative_to(root).as_posix())
            for name, paths in half.items()
            for path in paths
        )
        for half in (train, held_out)
    )
    return LabelledSet(root.name, tuple(class_names), False, *halves)


def _by_class(root: Path) -> dict[str, list[Path]]:
    """Return the image files of each class folder that has any."""
    found: dict[str, list[Path]] = {}
    for path in visible(root, "*/**/*"):
        if path.suffix.lower() in _ENDINGS and path.is_file():
            found.setdefault(path.relative_to(root).parts[0], []).append(path)
    return found


def _image(path: Path, classes: tuple[int, ...], key: str) -> LabelledImage:
    return LabelledImage(str(path), functools.partial(load_image, path), classes, key)


def _is_held_out(digest: str) -> bool:
    """Return whether an image is in the test half; equal bytes are always in the same."""
    return int(digest[:8], 16) < _TEST_SHARE * 2**32


def _from_instances(data: str, reporter: Reporter) -> LabelledSet:
    folder = open_data(data, reporter, images_required=False)
    present: dict[tuple[int | str, Path], frozenset[str]] = {}
    for name in _INSTANCES:
        file = folder.files.find("coco", name)
        if file is not None:
            instances = read_instances(file)
            for number, counts in instances.counts.items():
                present.setdefault(instances.image(folder.files, number), frozenset(counts))
    class_names = tuple(sorted(frozenset().union(*present.values())))
    halves: tuple[list[LabelledImage], list[LabelledImage]] = ([], [])
    for (image_id, path), names in present.items():
        if path.is_file():
            labels = tuple(sorted(class_names.index(name) for name in names))
            key = str(image_id)
            halves[_is_held_out(hash_text(key))].append(_image(path, labels, key))
    return LabelledSet(folder.name, class_names, True, *map(tuple, halves))


def _from_hub(source: str, columns: HubColumns) -> LabelledSet:
    halves = []
    class_names: tuple[str, ...] = ()
    for split in (columns.train, columns.test):
        rows = open_rows(source, split)
        for column in (columns.image, columns.label):
            if column not in rows.column_names:
                raise DataError(
                    f"{source}: no column '{column}'; it has {', '.join(rows.column_names)} "
                    "(--image-column, --label-column)"
                )
        labels = rows[columns.label]
        names = getattr(rows.features[columns.label], "names", None)
        for number, label in enumerate(labels):
            if not isinstance(label, str | int | float):
                raise DataError(
                    f"{source}: row {number} of split '{split}': its label {label!r} is no name "
                    "and no number (--label-column)"
                )
        if names is not None:  # a ClassLabel column, whose values are indices; -1 is unlabelled
            labels = [names[label] if 0 <= label < len(names) else label for label in labels]
        class_names = class_names or tuple(map(str, names or _ordered(labels)))
        known = {name: index for index, name in enumerate(class_names)}
        images = []
        for number, label in enumerate(labels):
            if (index := known.get(str(label))) is None:
                raise DataError(
                    f"{source}: row {number} of split '{split}': its label {label!r} is none of "
                    f"split '{columns.train}'"
                )
            opener = functools.partial(_open_row, rows, number, columns.image)
            row = f"{source}/{split}/{number}"
            images.append(LabelledImage(row, opener, (index,), row))
        halves.append(tuple(images))
    return LabelledSet(source, class_names, False, *halves)


def _open_row(rows: Any, number: int, column: str) -> Image.Image:
    image: Image.Image = rows[number][column].convert("RGB")
    return image


@dataclass(frozen=True, slots=True)
class Material:
    """What the predictors read: labelled images, boxes on test images, and captions of them."""

    labelled: LabelledSet
    boxes: Mapping[Path, Mapping[int, Sequence[Box]]]
    captions: Mapping[Path, str]

    @property
    def train(self) -> list[Path]:
        """Training images."""
        return [Path(image.name) for image in self.labelled.train]

    @property
    def test(self) -> list[Path]:
        """Test images."""
        return [Path(image.name) for image in self.labelled.test]

    @property
    def described(self) -> list[Path]:
        """Test images that have a caption."""
        return [path for path in self.test if path in self.captions]


def read_material(folder: DataFolder, labelled: LabelledSet) -> Material:
    """Return what a data folder offers beside its labels; what it lacks is empty."""
    tested = {Path(image.name) for image in labelled.test}
    found: dict[Path, dict[int, list[Box]]] = defaultdict(lambda: defaultdict(list))
    for name in _INSTANCES:
        file = folder.files.find("coco", name)
        for path, category, box in _read_boxes(folder, file) if file else ():
            if path in tested:
                found[path][category].append(box)
    captions: dict[Path, str] = {}
    for split in _SPLITS:
        with contextlib.suppress(DataError):  # a folder without captions
            for sample in folder.samples(
                "captioning", reader="coco-captions", source="captions", split=split
            ):
                captions.setdefault(sample.image_path, sample.references[0])
    return Material(labelled, found, captions)


class _Boxed(Row):
    image_id: int
    category_id: int
    bbox: list[float]


class _Named(Row):
    id: int
    file_name: str = ""


def _read_boxes(folder: DataFolder, file: Path) -> Iterator[tuple[Path, int, Box]]:
    content = AnnotationFile(file)
    names = {row.id: row.file_name for _, row in content.rows(_Named, "images")}
    split = "train" if "train" in file.name else "val"
    for where, row in content.rows(_Boxed, "annotations"):
        if len(row.bbox) != 4:
            raise DataError(f"{where}: 'bbox' is not four numbers")
        name = names.get(row.image_id, "")
        path = folder.files.image(row.image_id, where, split=split, name=name)[1]
        x, y, width, height = row.bbox
        yield path, row.category_id, (x, y, x + width, y + height)


def _ordered(labels: Sequence[Any]) -> list[Any]:
    """Return the different labels, numbers by their values and others by their texts."""
    numbers = all(isinstance(label, int | float) for label in labels)
    return sorted(set(labels), key=None if numbers else str)
