"""The files of a data folder: where the official ones are, what is in them, and their images."""

from __future__ import annotations

import copy
import filecmp
import gzip
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError

Row = dict[str, Any]
_IMAGE_FOLDERS = (
    *("train2017", "val2017", "train2014", "val2014", "test2015"),
    *("vcr1images", "images"),
)
_YEARS = {"train2017": 2017, "val2017": 2017, "train2014": 2014, "val2014": 2014, "test2015": 2014}
"""COCO's two divisions of the same images: within one, an image is in one folder only."""
_PATH_FOLDERS = ("", "vcr1images", "vcr/vcr1images")
"""Where an image that a data file names by its path may be; VCR's paths begin within its own."""
_IMAGE_ENDINGS = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
)
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
        for place in (*self.places(folder), *top):
            for candidate in (place / name, place / f"{name}.gz"):
                if candidate.is_file():
                    return candidate
        return None

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
        places = (
            place / name for name in _IMAGE_FOLDERS for place in (self.root / "coco", self.root)
        )
        return [folder for folder in places if folder.is_dir()]

    @cached_property
    def coco_images(self) -> dict[int, list[Path]]:
        """Image files by numeric COCO id, which the 2014 and 2017 file names share."""
        found: dict[int, list[Path]] = defaultdict(list)
        for folder in self.image_folders:
            for path in sorted(folder.iterdir()):
                match = _COCO_NAME.fullmatch(path.stem)
                if match and path.suffix.lower() in _IMAGE_ENDINGS:
                    found[int(match.group(1))].append(path)
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
        if key not in self._found:
            found = (
                self._by_number(image_id, where, split, name)
                if isinstance(image_id, int)
                else self._by_path(image_id, where)
            )
            if found is None:
                return self._missing(key, where)
            self._found[key] = found
        return self._found[key]

    def image_in(self, folders: Sequence[str], name: str, where: str) -> tuple[int | str, Path]:
        """Return the identity and file of an image in the first of the folders that has it."""
        there = (folder for folder in folders if (self.root / folder / name).is_file())
        return self.image(f"{next(there, folders[0])}/{name}", where)

    def _missing(self, key: tuple[int | str, str, str], where: str) -> tuple[int | str, Path]:
        image_id, _, name = key
        shown = f"id {image_id}" if isinstance(image_id, int) else image_id
        looked = ", ".join(folder.name for folder in self.image_folders) or "no image folder"
        line = f"{where}: no image file for {shown}{f' ({name})' * bool(name)} in {self.root} "
        line += f"(looked in {looked})"
        if self.images_required:
            raise DataError(line)
        self.missing[image_id] = line
        return image_id, self.root / "missing" / (name or str(image_id))

    def _by_path(self, path: str, where: str) -> tuple[str, Path] | None:
        places = (
            path_inside(self.root / folder, path, where, self.root) for folder in _PATH_FOLDERS
        )
        found = next((place for place in places if place.is_file()), None)
        return None if found is None else (path, found)

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
            if not _same_image(first, other):
                raise DataError(
                    f"{where}: image {image_id} may be {first} or {other}, which differ; remove or "
                    "rename one, or give its path in the data file"
                )
        years = [_YEARS.get(folder) for folder in {path.parent.name for path in numbered}]
        begins_again = any(years.count(year) > 1 for year in (2014, 2017))
        path = path_inside(first.parent, first.name, where, self.root)
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


def _same_image(one: Path, other: Path) -> bool:
    """Return whether two files of one id are the same image: of COCO's two years, or by bytes."""
    years = _YEARS.get(one.parent.name), _YEARS.get(other.parent.name)
    if None not in years and years[0] != years[1]:
        return True
    return filecmp.cmp(one, other, shallow=False)


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


def read_json(path: Path) -> Any:
    """Return a JSON file's content, of a `.gz` file unpacked; an error names line and column."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        ended = error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated")
        cut = " (cut short?)" if ended else ""
        raise DataError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}{cut}"
        ) from None


def rows_of(path: Path, *keys: str) -> list[Row]:
    """Return the rows of a JSON file that is a list, or the list under its one key."""
    return tables_of(path, *keys)[0]


def tables_of(path: Path, *keys: str) -> list[list[Row]]:
    """Return the lists of rows under each key of a JSON file, or the file's own; none is empty."""
    content = read_json(path)
    tables: list[list[Row]] = []
    for key in keys or (None,):
        where, rows = f"{path}: '{key}'" if key else str(path), content
        if key is not None:
            if not isinstance(content, dict) or key not in content:
                raise DataError(f"{path}: no '{key}' at the top level")
            rows = content[key]
        if not isinstance(rows, list):
            raise DataError(f"{where} is not a list")
        if not rows:
            raise DataError(f"{where} is empty")
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise DataError(f"{where}, row {index}: not an object")
        tables.append(rows)
    return tables


def numbered(path: Path, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    """Yield each row with the words that name it in an error."""
    for index, row in enumerate(rows):
        yield f"{path}, row {index}", row


def integer(row: Row, field: str, where: str) -> int:
    """Return a whole number field; a number as text is an error, since it matches nothing."""
    value = _field(row, field, where)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where}: '{field}' is {value!r}, not a whole number")
    return value


def text(row: Row, field: str, where: str) -> str:
    """Return a text field with a visible character in it."""
    value = _field(row, field, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: '{field}' is {value!r}, not text")
    if not value.strip():
        raise DataError(f"{where}: '{field}' is empty")
    return value


def entries(row: Row, field: str, where: str) -> list[Any]:
    """Return a list field that is not empty."""
    values = row.get(field)
    if not isinstance(values, list) or not values:
        raise DataError(f"{where}: '{field}' is not a list with anything in it")
    return values


def texts(row: Row, field: str, inner: str, where: str) -> tuple[str, ...]:
    """Return the text field `inner` of every object in a list field that is not empty."""
    place = f"{where}, '{field}'"
    return tuple(text(entry, inner, place) for entry in entries(row, field, where))


def unique_ids(path: Path, rows: Iterable[Row], field: str = "id") -> dict[int, Row]:
    """Return rows by id; none occurs twice."""
    found: dict[int, Row] = {}
    for where, row in numbered(path, rows):
        identifier = integer(row, field, where)
        if identifier in found:
            raise DataError(f"{where}: duplicate '{field}' {identifier}")
        found[identifier] = row
    return found


def _field(row: Any, field: str, where: str) -> Any:
    if not isinstance(row, dict):
        raise DataError(f"{where}: {row!r} is not an object with '{field}'")
    if field not in row:
        raise DataError(f"{where}: no '{field}'")
    return row[field]
