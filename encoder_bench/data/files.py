"""The files of a data folder: where the official ones are, and their images."""

from __future__ import annotations

import copy
import filecmp
import os
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path

from encoder_bench.base.errors import DataError

_YEARS = {"train2017": 2017, "val2017": 2017, "train2014": 2014, "val2014": 2014, "test2015": 2014}
"""COCO's two divisions of the same images: within one, an image is in one folder only."""
_IMAGE_FOLDERS = (*_YEARS, "vcr1images", "images")
_PATH_FOLDERS = ("", "vcr1images", "vcr/vcr1images")
"""Where an image that a data file names by its path may be; VCR's paths begin within its own."""
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_COCO_NAME = re.compile(r"(?:COCO_\w+?_)?(\d+)")
_SHARED_NAMES = {"train.json", "val.json", "test.json"}
"""Names that do not say whose file it is: looked for in their own folder only."""
FOLLOW_LINKS = "ENCODER_BENCH_FOLLOW_LINKS"
"""Environment variable: `1` accepts images that are links to files outside the data folder."""


class DataFiles:
    """A data folder in the official layouts; `coco/`, `vqav2/`... may be merged into the top.

    Attributes:
        root: the folder as the user gave it.
        images_required: whether a missing image is an error; otherwise it is listed in `missing`.
        missing: one line per image that is not there, by image.
    """

    def __init__(self, root: Path, *, images_required: bool = True) -> None:
        self.root = root
        self.images_required = images_required
        self.missing: dict[int | str, str] = {}
        self._found: dict[tuple[int | str, str, str], tuple[int | str, Path]] = {}

    def without_images(self) -> DataFiles:
        """Return the same folder for reading questions only: missing images are no error."""
        lenient = copy.copy(self)
        lenient.images_required, lenient.missing = False, {}
        return lenient

    def places(self, folder: str) -> list[Path]:
        """Return the folder and its `annotations/` (`Annotations/`), as far as they exist."""
        place = self.root / folder
        if not place.is_dir():
            return []
        return [place, *(child for child in place.iterdir() if child.name.lower() == "annotations")]

    def find(self, folder: str, name: str) -> Path | None:
        """Return the file `name` (or `name.gz`) of `folder`, or of the top; None without one."""
        top = self.places("")[name in _SHARED_NAMES :]
        places = (*self.places(folder), *top)
        candidates = (place / f"{name}{end}" for place in places for end in ("", ".gz"))
        return next(filter(Path.is_file, candidates), None)

    def require(self, folder: str, name: str) -> Path:
        """Return the file as `find` does; none is an error."""
        path = self.find(folder, name)
        if path is None:
            raise DataError(
                f"{self.root}: no {name}; it is looked for in {folder}/, {folder}/annotations/ and "
                "at the top (the official layout, see README)"
            )
        return path

    @cached_property
    def image_folders(self) -> list[Path]:
        """The image folders that are there."""
        tops = (self.root / "coco", self.root)
        return [top / name for name in _IMAGE_FOLDERS for top in tops if (top / name).is_dir()]

    @cached_property
    def coco_images(self) -> dict[int, list[Path]]:
        """Image files by numeric COCO id, which the 2014 and 2017 file names share."""
        found: dict[int, list[Path]] = defaultdict(list)
        for folder in self.image_folders:
            for path in sorted(folder.iterdir()):
                number = coco_id(path.name)
                if number is not None and path.suffix.lower() in _IMAGE_ENDINGS:
                    found[number].append(path)
        return dict(found)

    def image(
        self, image_id: int | str, where: str, *, split: str = "", name: str = ""
    ) -> tuple[int | str, Path]:
        """Return an image's identity and its file.

        Two samples show the same image exactly when the identities are equal: COCO's numeric id
        where the file is named by it, else the file's path in the data folder. Ids that begin
        again in each split are therefore no identity.

        Args:
            image_id: a number, or the path that a data file gives.
            where: the data file and row, for errors.
            split: `train`, `val` or `test`: COCO's, of which the data file speaks.
            name: the file's name, where the data file gives one; it decides.

        Raises:
            DataError: no such image file, several different ones, or one outside the data folder.
        """
        key = (image_id, split, name)
        if key in self._found:
            return self._found[key]
        if isinstance(image_id, int):
            found = self._by_number(image_id, where, split, name)
        else:
            places = (path_inside(self.root / f, image_id, where, self.root) for f in _PATH_FOLDERS)
            path = next(filter(Path.is_file, places), None)
            found = None if path is None else (image_id, path)
        if found is not None:
            return self._found.setdefault(key, found)
        shown = f"id {image_id}" if isinstance(image_id, int) else image_id
        looked = ", ".join(folder.name for folder in self.image_folders) or "no image folder"
        line = f"{where}: no image file for {shown}{f' ({name})' * bool(name)} in {self.root} "
        line += f"(looked in {looked})"
        if self.images_required:
            raise DataError(line)
        self.missing[image_id] = line
        return image_id, self.root / "missing" / (name or str(image_id))

    def _by_number(
        self, image_id: int, where: str, split: str, name: str
    ) -> tuple[int | str, Path] | None:
        numbered = self.coco_images.get(image_id, [])
        candidates = self._named(name, where, split) if name else []
        by_id = not name or coco_id(name) == image_id
        if not candidates and by_id:
            own = [path for path in numbered if split and path.parent.name.startswith(split)]
            candidates = own or numbered
        if not candidates:
            return None
        first = candidates[0]
        for other in candidates[1:]:
            years = {_YEARS.get(path.parent.name) for path in (first, other)}
            if (len(years) == 1 or None in years) and not filecmp.cmp(first, other, shallow=False):
                raise DataError(
                    f"{where}: image {image_id} may be {first} or {other}, which differ; remove or "
                    "rename one, or give its path in the data file"
                )
        path = path_inside(first.parent, first.name, where, self.root)
        known = [_YEARS.get(folder) for folder in {path.parent.name for path in numbered}]
        begins_again = any(known.count(year) > 1 for year in _YEARS.values())
        if by_id and not begins_again:
            return image_id, path
        return first.relative_to(self.root).as_posix(), path

    def _named(self, name: str, where: str, split: str) -> list[Path]:
        """Return the files of that name in the split's own folders, or in the common ones."""
        own = [folder for folder in self.image_folders if folder.name.startswith(split or "-")]
        common = [folder for folder in self.image_folders if folder.name == "images"]
        for folders in (own, [*common, self.root / "coco", self.root]):
            found = [folder for folder in folders if (folder / name).is_file()]
            for folder in found:
                path_inside(folder, name, where, self.root)
            if found:
                return [folder / name for folder in found]
        return []


def coco_id(name: str) -> int | None:
    """Return the id in a COCO image's file name.

    >>> [coco_id(name) for name in ("COCO_val2014_000000000042.jpg", "042.png", "shot_42.png")]
    [42, 42, None]
    """
    match = _COCO_NAME.fullmatch(Path(name).stem)
    return int(match.group(1)) if match else None


def path_inside(folder: Path, name: str, where: str, root: Path) -> Path:
    """Return the resolved path of a name in a folder, from which links may lead into `root`.

    Raises:
        DataError: the path leaves both, by `..`, by being absolute, or through a link.
    """
    places = {place.resolve() for place in (folder, root)}
    path = (folder / name).resolve()
    if any(path.is_relative_to(place) for place in places):
        return path
    unlinked = Path(os.path.normpath(folder.resolve() / name))
    if not any(unlinked.is_relative_to(place) for place in places):
        raise DataError(f"{where}: image path '{name}' leaves the folder {folder}")
    if os.environ.get(FOLLOW_LINKS) == "1":
        return path
    raise DataError(
        f"{where}: image '{name}' leaves the folder {folder} through a link to {path}; "
        f"{FOLLOW_LINKS}=1 follows such links"
    )
