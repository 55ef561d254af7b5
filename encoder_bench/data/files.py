"""The files of a data folder: where the official ones are, what is in them, and their images."""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError
from encoder_bench.data.images import image_inside

Row = dict[str, Any]
_IMAGE_FOLDERS = (
    "train2017",
    "val2017",
    "train2014",
    "val2014",
    "test2015",
    "vcr1images",
    "images",
)
_PATH_FOLDERS = ("", "vcr1images", "vcr/vcr1images")
"""Where an image that a data file names by its path may be; VCR's paths begin within its own."""
_IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
_COCO_ID = re.compile(r"(\d+)$")
_SHARED_NAMES = {"train.json", "val.json", "test.json"}
"""Names that do not say whose file it is: looked for in their own folder only."""


class DataFiles:
    """A data folder in the official layouts; `coco/`, `vqav2/`... may be merged into the top.

    Attributes:
        root: the folder as the user gave it.
        images_required: whether a missing image is an error; otherwise it is listed in `missing`.
        missing: one line per image that is not there.
    """

    def __init__(self, root: Path, *, images_required: bool = True) -> None:
        """Nothing is read yet."""
        self.root = root
        self.images_required = images_required
        self.missing: list[str] = []

    def without_images(self) -> DataFiles:
        """Return the same folder for reading questions only: missing images are no error."""
        lenient = copy.copy(self)
        lenient.images_required, lenient.missing = False, []
        return lenient

    def places(self, folder: str) -> list[Path]:
        """Return the folder and its `annotations/` (`Annotations/`), as far as they exist."""
        place = self.root / folder
        if not place.is_dir():
            return []
        inner = (child for child in place.iterdir() if child.name.lower() == "annotations")
        return [place, *inner]

    def find(self, folder: str, name: str) -> Path | None:
        """Return the file `name` (or `name.gz`) of `folder`, or of the top; None without one."""
        top = self.places("")
        for place in (*self.places(folder), *(top[1:] if name in _SHARED_NAMES else top)):
            for candidate in (place / name, place / f"{name}.gz"):
                if candidate.is_file():
                    return candidate
        return None

    def require(self, folder: str, name: str) -> Path:
        """Return the file as `find` does.

        Raises:
            DataError: it is in none of the places.
        """
        path = self.find(folder, name)
        if path is None:
            raise DataError(
                f"{self.root}: no {name}; it is looked for in {folder}/, {folder}/annotations/ and "
                "at the top (the official layout, see README)"
            )
        return path

    def image_folders(self) -> list[Path]:
        """Return the image folders that are there."""
        return [
            folder
            for name in _IMAGE_FOLDERS
            for folder in (self.root / "coco" / name, self.root / name)
            if folder.is_dir()
        ]

    @cached_property
    def coco_images(self) -> dict[int, Path]:
        """Image files by numeric COCO id, which the 2014 and 2017 file names share."""
        found: dict[int, Path] = {}
        for folder in self.image_folders():
            for path in sorted(folder.iterdir()):
                match = _COCO_ID.search(path.stem)
                if match and path.suffix.lower() in _IMAGE_ENDINGS:
                    found.setdefault(int(match.group(1)), path)
        return found

    def image(self, image_id: int | str, where: str) -> Path:
        """Return the file of an image: by numeric id, or by the path that a data file gives.

        Raises:
            DataError: there is none, or the path leaves the folder; names the row.
        """
        if image_id in self._found:
            return self._found[image_id]
        path = self._find_image(image_id, where)
        if path is not None:
            self._found[image_id] = path
            return path
        line = f"{where}: no image file for {image_id!r} in {self.root}"
        if isinstance(image_id, int):
            folders = ", ".join(folder.name for folder in self.image_folders())
            line = f"{where}: no image file for id {image_id} in {self.root} (looked in "
            line += f"{folders or 'no image folder'})"
        if self.images_required:
            raise DataError(line)
        self.missing.append(line)
        return self.root / "missing" / str(image_id)

    def image_in(self, folders: Sequence[str], name: str, where: str) -> tuple[str, Path]:
        """Return the id (its path in the data folder) and file of an image in one of the folders.

        Raises:
            DataError: it is in none of them.
        """
        there = (f for f in folders if (self.root / f / name).is_file())
        image_id = f"{next(there, folders[0])}/{name}"
        return image_id, self.image(image_id, where)

    @cached_property
    def _found(self) -> dict[int | str, Path]:
        """Image files that were found and checked; most images have many questions."""
        return {}

    def _find_image(self, image_id: int | str, where: str) -> Path | None:
        if isinstance(image_id, int):
            path = self.coco_images.get(image_id)
            return path and image_inside(path.parent, path.name, where=where)
        for folder in _PATH_FOLDERS:
            path = image_inside(self.root / folder, image_id, where=where)
            if path.is_file():
                return path
        return None


def read_json(path: Path) -> Any:
    """Return a JSON file's content; a `.gz` file is unpacked.

    Raises:
        DataError: missing, cut short or not JSON; names file, line and column.
    """
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


def rows_of(path: Path, key: str | None = None) -> list[Row]:
    """Return the list of rows in a JSON file, under `key` where it is an object.

    Raises:
        DataError: no such key, not a list, a row that is no object, or an empty list.
    """
    content = read_json(path)
    if key is not None:
        if not isinstance(content, dict) or key not in content:
            raise DataError(f"{path}: no '{key}' at the top level")
        content = content[key]
    where = f"{path}: '{key}'" if key else str(path)
    if not isinstance(content, list):
        raise DataError(f"{where} is not a list")
    if not content:
        raise DataError(f"{where} is empty")
    for index, row in enumerate(content):
        if not isinstance(row, dict):
            raise DataError(f"{where}, row {index}: not an object")
    return content


def numbered(path: Path, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    """Yield each row with the words that name it in an error."""
    for index, row in enumerate(rows):
        yield f"{path}, row {index}", row


def integer(row: Row, field: str, where: str) -> int:
    """Return a whole number field.

    Raises:
        DataError: missing, or of another type (an id as text in one file matches nothing).
    """
    value = _field(row, field, where)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where}: '{field}' is {value!r}, not a whole number")
    return value


def text(row: Row, field: str, where: str) -> str:
    """Return a text field that is not blank.

    Raises:
        DataError: missing, of another type, or without a visible character.
    """
    value = _field(row, field, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: '{field}' is {value!r}, not text")
    if not value.strip():
        raise DataError(f"{where}: '{field}' is empty")
    return value


def unique_ids(path: Path, rows: Iterable[Row], field: str = "id") -> dict[int, Row]:
    """Return rows by id.

    Raises:
        DataError: an id occurs twice; names it.
    """
    found: dict[int, Row] = {}
    for where, row in numbered(path, rows):
        identifier = integer(row, field, where)
        if identifier in found:
            raise DataError(f"{where}: duplicate '{field}' {identifier}")
        found[identifier] = row
    return found


def _field(row: Row, field: str, where: str) -> Any:
    if field not in row:
        raise DataError(f"{where}: no '{field}'")
    return row[field]
