"""Where the official files lie in a data folder, and which image file an id stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from encoder_bench.base.errors import DataError
from encoder_bench.data.images import image_inside

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
"""Where an image that a data file names by its path may lie; VCR's paths begin within its own."""
_IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
_COCO_ID = re.compile(r"(\d+)$")


@dataclass(frozen=True)
class Layout:
    """A data folder; `coco/`, `vqav2/` and `gvtbench/` may also be merged into the top.

    Attributes:
        root: the folder as the user gave it.
    """

    root: Path

    def find(self, folder: str, name: str) -> Path | None:
        """Return the file `name` of `folder`, or of the top, or of its `annotations/`."""
        places = (self.root / folder, self.root / folder / "annotations")
        for place in (*places, self.root, self.root / "annotations"):
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
        if image_id not in self._checked:
            self._checked[image_id] = self._find_image(image_id, where)
        return self._checked[image_id]

    @cached_property
    def _checked(self) -> dict[int | str, Path]:
        """Image files that were found and checked; most images have many questions."""
        return {}

    def _find_image(self, image_id: int | str, where: str) -> Path:
        if isinstance(image_id, int):
            path = self.coco_images.get(image_id)
            if path is None:
                raise DataError(
                    f"{where}: no image file for id {image_id} in {self.root} (looked in "
                    f"{', '.join(f.name for f in self.image_folders()) or 'no image folder'})"
                )
            return image_inside(path.parent, path.name, where=where)
        for folder in _PATH_FOLDERS:
            path = image_inside(self.root / folder, image_id, where=where)
            if path.is_file():
                return path
        raise DataError(
            f"{where}: no image file {self.root / image_id}, nor in vcr1images/ or vcr/vcr1images/"
        )


class TolerantLayout(Layout):
    """A layout whose missing images are noted instead of raised; their paths lead nowhere."""

    @cached_property
    def missing(self) -> list[str]:
        """A line for each image that is not there."""
        return []

    def _find_image(self, image_id: int | str, where: str) -> Path:
        try:
            return super()._find_image(image_id, where)
        except DataError as error:
            self.missing.append(str(error))
            return self.root / "missing" / str(image_id)
