"""The files of a data folder: where the official ones are, and their images."""

from __future__ import annotations

import contextlib
import copy
import filecmp
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from encoder_bench.base.errors import DataError
from encoder_bench.base.files import reading, write_text

_YEARS = {"train2017": 2017, "val2017": 2017, "train2014": 2014, "val2014": 2014, "test2015": 2014}
"""COCO's two divisions of the same images: within one, an image is in one folder only."""
_IMAGE_FOLDERS = (*_YEARS, "vcr1images", "images")
_PATH_FOLDERS = ("", "vcr1images", "vcr/vcr1images")
"""Where an image that a data file names by its path may be; VCR's paths begin within its own."""
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_COCO_NAME = re.compile(r"(?:.*/)?(?:COCO_\w+?_)?(\d+)(?:\.[^./]+)?")
_SHARED_NAMES = {"train.json", "val.json", "test.json"}
"""Names that do not say whose file it is: looked for in their own folder only."""
FOLLOW_LINKS = "ENCODER_BENCH_FOLLOW_LINKS"
"""Environment variable: `1` accepts images that are links to files outside the data folder."""


class _Listing(NamedTuple):
    """A folder of images: where it really is, sizes of its files in order, targets of links."""

    folder: Path
    real: Path
    sizes: dict[str, int]
    links: dict[str, str]


_File = tuple[_Listing, str]
Stamps = dict[str, list[int]]
"""Size and time of change by path in the data folder; empty of what is not there."""


class DataFiles:
    """A data folder in the official layouts; `coco/`, `vqav2/`... may be merged into the top.

    Attributes:
        root: the folder as the user gave it.
        missing: one line per image that is not there, by image.
        looked: where else than in annotation files and image folders something was looked for.
        is_tested: whether training leaves an image out, by identity and file: a reader whose choice
            of one image depends on others leaves them out itself.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.missing: dict[int | str, str] = {}
        self.looked: set[str] = set()
        self.is_tested: Callable[[int | str, Path], bool] = lambda *_: False
        self._found: dict[tuple[int | str, str, str], tuple[int | str, Path] | None] = {}

    def afresh(self) -> DataFiles:
        """Return the same folder, of which nothing has been read yet."""
        other = copy.copy(self)
        other.missing, other.looked, other._found = {}, set(), {}
        return other

    def stamps(self, looked: Iterable[str]) -> Stamps:
        """Return what tells whether files or folders have changed since."""
        found: Stamps = {}
        for name in looked:
            found[name] = []
            with contextlib.suppress(OSError):
                status = (self.root / name).stat()
                found[name] = [status.st_size, status.st_mtime_ns]
        return found

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
        path = next(filter(Path.is_file, candidates), None)
        if path is not None and not name.endswith(".json"):
            self.looked.add(path.relative_to(self.root).as_posix())
        return path

    def first(self, names: Iterable[str]) -> str:
        """Return the first path in the data folder that is a file, or the first of all."""
        names = list(names)
        self.looked.update(str(Path(name).parent) for name in names)
        return next((name for name in names if (self.root / name).is_file()), names[0])

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
    def listings(self) -> list[_Listing]:
        """The files of the image folders."""
        found = []
        for folder in self.image_folders:
            sizes, links = {}, {}
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file() and not entry.name.startswith("."):
                        sizes[entry.name] = entry.stat().st_size
                        if entry.is_symlink():
                            links[entry.name] = str(Path(entry.path).readlink())
            found.append(_Listing(folder, folder.resolve(), dict(sorted(sizes.items())), links))
        return found

    @cached_property
    def coco_images(self) -> dict[int, tuple[_File, ...]]:
        """Image files by numeric COCO id, which the 2014 and 2017 file names share."""
        found: dict[int, tuple[_File, ...]] = {}
        for listing in self.listings:
            for name in listing.sizes:
                number = coco_id(name)
                if number is not None and name.lower().endswith(_IMAGE_ENDINGS):
                    found[number] = (*found.get(number, ()), (listing, name))
        return found

    def image(
        self, image_id: int | str, where: str, *, split: str = "", name: str = ""
    ) -> tuple[int | str, Path]:
        """Return an image's identity and its file.

        The identity is COCO's numeric id where the file is named by it, else the file's path in the
        data folder: ids that begin again in each split, for other photos, are none. An image that
        is not there is no error, but noted in `missing`.

        Args:
            image_id: a number, or the path that a data file gives.
            where: the data file and row, for errors.
            split: COCO's (`train`, `val`, `test`), of which the data file speaks.
            name: the file's name, where the data file gives one; it decides.

        Raises:
            DataError: several different image files, or one outside the data folder.
        """
        key = (image_id, split, name)
        if key not in self._found:
            self._found[key] = (
                self._by_number(image_id, where, split, name)
                if isinstance(image_id, int)
                else self._by_path(image_id, where)
            )
        found = self._found[key]
        if found is not None:
            return found
        if image_id not in self.missing:
            shown = f"id {image_id}" if isinstance(image_id, int) else image_id
            looked = ", ".join(folder.name for folder in self.image_folders) or "no image folder"
            self.missing[image_id] = (
                f"{where}: no image file for {shown}{f' ({name})' * bool(name)} in {self.root} "
                f"(looked in {looked})"
            )
        return image_id, self.root / "missing" / (name or str(image_id))

    def _by_path(self, name: str, where: str) -> tuple[str, Path] | None:
        self.looked.update(str(Path(folder, name).parent) for folder in _PATH_FOLDERS)
        places = (path_inside(self.root / f, name, where, self.root) for f in _PATH_FOLDERS)
        path = next(filter(Path.is_file, places), None)
        return None if path is None else (name, path)

    def _by_number(
        self, image_id: int, where: str, split: str, name: str
    ) -> tuple[int | str, Path] | None:
        numbered = self.coco_images.get(image_id, ())
        candidates = self._named(name, where, split) if name else []
        by_id = not name or coco_id(name) == image_id
        if not candidates and by_id:
            own = [f for f in numbered if split and f[0].folder.name.startswith(split)]
            candidates = own or list(numbered)
        if not candidates:
            return None
        listing, first = candidates[0]
        for other, also in candidates[1:]:
            years = {_YEARS.get(folder.name) for folder in (listing.folder, other.folder)}
            one, two = listing.folder / first, other.folder / also
            if (len(years) == 1 or None in years) and not filecmp.cmp(one, two, shallow=False):
                raise DataError(
                    f"{where}: image {image_id} may be {one} or {two}, which differ; remove or "
                    "rename one, or give its path in the data file"
                )
        path = listing.real / first
        if first not in listing.sizes or first in listing.links:
            path = path_inside(listing.folder, first, where, self.root)
        known = [_YEARS.get(folder) for folder in {f[0].folder.name for f in numbered}]
        apart = len(known) < 2 or all(known.count(year) < 2 for year in _YEARS.values())
        others = (each.folder / other for each, other in numbered)
        if by_id and (apart or all(filecmp.cmp(path, other, shallow=False) for other in others)):
            return image_id, path
        return (listing.folder / first).relative_to(self.root).as_posix(), path

    def _named(self, name: str, where: str, split: str) -> list[_File]:
        """Return the files of that name in the split's own folders, or in the common ones."""
        own = [each for each in self.listings if each.folder.name.startswith(split or "-")]
        for listings in (own, self._common_folders):
            found = [each for each in listings if self._has(each, name)]
            for each in found:
                if name not in each.sizes:
                    path_inside(each.folder, name, where, self.root)
            if found:
                return [(each, name) for each in found]
        return []

    @cached_property
    def _common_folders(self) -> list[_Listing]:
        tops = (self.root / "coco", self.root)  # whose many files are not listed
        named = [each for each in self.listings if each.folder.name == "images"]
        return [*named, *(_Listing(top, top, {}, {}) for top in tops)]

    @staticmethod
    def _has(listing: _Listing, name: str) -> bool:
        looked_up = "/" in name or not listing.sizes
        return name in listing.sizes or (looked_up and (listing.folder / name).is_file())


def coco_id(name: str) -> int | None:
    """Return the id in a COCO image's file name.

    >>> [coco_id(name) for name in ("COCO_val2014_000000000042.jpg", "042.png", "shot_42.png")]
    [42, 42, None]
    """
    match = _COCO_NAME.fullmatch(name)
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


def write_annotations(texts: Mapping[Path, str]) -> None:
    """Write annotation files into a data folder, all of them or none.

    Raises:
        DataError: one is there and says something else; it may be a published file.
    """
    for path, text in texts.items():
        if path.exists():
            with reading(path):
                same = path.read_bytes() == text.encode()
            if not same:
                raise DataError(
                    f"{path} is there already, with other content, and stays as it is; remove it, "
                    "or write into another folder, whose image folders may be links"
                )
    for path, text in texts.items():
        write_text(path, text)
