"""Images with class labels, for probes: class folders, instances files, and data sets of the Hub.

An image is in one half only, as its bytes decide.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_file, hash_text
from encoder_bench.base.progress import Reporter
from encoder_bench.data.images import load_image

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_TEST_FOLDERS = ("test", "val", "validation")
_TEST_SHARE = 0.25
_INSTANCES = ("instances_train2017.json", "instances_val2017.json")


class LabelledImage(NamedTuple):
    """One image (opened in RGB) and the indices of its classes; `name` is unique."""

    name: str
    open: Callable[[], Image.Image]
    classes: tuple[int, ...]


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

    Args:
        data: `scenes`; a folder of class folders, whole or under `train/` and `test/` (or `val/`);
            a folder with COCO instances files; or `hub:NAME` of `datasets`.
        reporter: where progress goes.
        columns: of a Hub data set.
        limit: max images of each half, chosen by a hash of their names.

    Raises:
        DataError: nothing there has labels, a half is empty, or an image is in both.
    """
    root = Path(data)
    if data.startswith("hub:"):
        found = _from_hub(data.removeprefix("hub:"), columns or HubColumns())
    elif data.partition(":")[0] == "scenes":
        found = _from_instances(data, reporter)
    elif not root.is_dir():
        raise DataError(f"--data {data}: no such folder; a Hub data set is hub:NAME")
    elif any(next(root.rglob(name), None) for name in _INSTANCES):
        found = _from_instances(data, reporter)
    else:
        found = _from_class_folders(root)
    for half, images in (("train", found.train), ("test", found.test)):
        if not images:
            raise DataError(f"--data {data}: no labelled {half} images")
    return found._replace(train=_some(found.train, limit), test=_some(found.test, limit))


def _some(images: Sequence[LabelledImage], limit: int | None) -> tuple[LabelledImage, ...]:
    chosen = sorted(images, key=lambda image: hash_text("probe", image.name))[:limit]
    return tuple(sorted(chosen, key=lambda image: image.name))


def _from_class_folders(root: Path) -> LabelledSet:
    test = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    if (root / "train").is_dir() and test is not None:
        class_names = _class_folders(root / "train")
        unknown = sorted(set(_class_folders(test)) - set(class_names))
        if unknown:
            raise DataError(f"{test}: class '{unknown[0]}' is not in {root / 'train'}")
        train, held_out = _files(root / "train", class_names), _files(test, class_names)
        seen = {hash_file(path): path for path, _ in train}
        for path, _ in held_out:
            twin = seen.get(hash_file(path))
            if twin is not None:
                raise DataError(f"{path}: the same image as {twin}, which is in the training half")
    else:
        class_names = _class_folders(root)
        if len(class_names) < 2:
            raise DataError(
                f"{root}: fewer than two class folders with images, and no instances file"
            )
        train, held_out = [], []
        for path, label in _files(root, class_names):
            (held_out if _is_held_out(hash_file(path)) else train).append((path, label))
    halves = (tuple(_image(path, (label,)) for path, label in files) for files in (train, held_out))
    return LabelledSet(root.name, class_names, False, *halves)


def _class_folders(root: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and any(_pictures(p))))


def _pictures(folder: Path) -> Iterable[Path]:
    return (p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS and p.is_file())


def _files(root: Path, class_names: Sequence[str]) -> list[tuple[Path, int]]:
    return [
        (path, label)
        for label, name in enumerate(class_names)
        for path in sorted(_pictures(root / name))
    ]


def _image(path: Path, classes: tuple[int, ...]) -> LabelledImage:
    return LabelledImage(str(path), functools.partial(load_image, path), classes)


def _is_held_out(digest: str) -> bool:
    """Return whether an image is in the test half; equal bytes are always in the same."""
    return int(digest[:8], 16) < _TEST_SHARE * 2**32


def _from_instances(data: str, reporter: Reporter) -> LabelledSet:
    from encoder_bench.data.folder import open_data
    from encoder_bench.data.readers.captions import read_instances

    folder = open_data(data, reporter, images_required=False)
    present: dict[tuple[int | str, Path], frozenset[str]] = {}
    for name in _INSTANCES:
        file = folder.files.find("coco", name)
        if file is not None:
            instances = read_instances(file)
            for number, counts in instances.counts.items():
                present.setdefault(instances.image(folder.files, number), frozenset(counts))
    class_names = tuple(sorted(frozenset().union(*present.values())))
    halves: dict[bool, list[LabelledImage]] = {False: [], True: []}
    for (image_id, path), names in sorted(present.items(), key=lambda i: str(i[0][0]).zfill(20)):
        if path.is_file():
            labels = tuple(sorted(class_names.index(name) for name in names))
            halves[_is_held_out(hash_text(str(image_id)))].append(_image(path, labels))
    return LabelledSet(folder.name, class_names, True, tuple(halves[False]), tuple(halves[True]))


def _from_hub(source: str, columns: HubColumns) -> LabelledSet:
    from encoder_bench.data.hub import open_rows

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
        feature, labels = rows.features[columns.label], rows[columns.label]
        names = getattr(feature, "names", None) or sorted({str(label) for label in labels})
        class_names = class_names or tuple(str(name) for name in names)
        images = []
        for number, label in enumerate(labels):
            index = label if isinstance(label, int) else class_names.index(str(label))
            opener = functools.partial(_open_row, rows, number, columns.image)
            images.append(LabelledImage(f"{source}/{split}/{number}", opener, (index,)))
        halves.append(tuple(images))
    return LabelledSet(source, class_names, False, halves[0], halves[1])


def _open_row(rows: Any, number: int, column: str) -> Image.Image:
    image: Image.Image = rows[number][column].convert("RGB")
    return image
