"""Small pictures inside HTML: images as data URIs, and what encoders see."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from encoder_bench.base.errors import DataError
from encoder_bench.base.record import RunRecord
from encoder_bench.data.folder import is_scenes, open_data
from encoder_bench.data.images import read_image_bytes

THUMBNAIL_PIXELS = 192
_LOSSLESS_PIXELS = 96


class SeenColumn(NamedTuple):
    """Photos as data URIs, or one encoder's view of them, where a pixel is one of the `patches`."""

    title: str
    note: str
    pictures: tuple[str, ...]
    patches: bool


class Seen(NamedTuple):
    """Pictures of one table's patch features, and a line for each encoder that has none."""

    columns: tuple[SeenColumn, ...]
    missing: tuple[str, ...]


def data_uri(path: Path) -> str | None:
    """Return an image of at most 192 x 192 pixels as a data URI; None if unreadable.

    Very small images stay PNG, since JPEG would smear them.
    """
    try:
        with Image.open(io.BytesIO(read_image_bytes(path))) as image:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    except (OSError, DataError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    return picture_uri(small, "png" if max(small.size) <= _LOSSLESS_PIXELS else "jpeg")


def picture_uri(image: Image.Image, kind: str) -> str:
    """Return an image as a data URI of a PNG or JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=72, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def sample_pictures(data: str | None, records: Sequence[RunRecord]) -> dict[str, Path]:
    """Return image files by id, of the samples that records' tasks asked about.

    Without `data`, the embedded scenes are found by their names in the records. A task whose files
    are not in `data` has no pictures, nor has an id of several sets of scenes.

    Raises:
        DataError: none of the tasks' files are in `data`.
    """
    found: dict[str, Path] = {}
    names: dict[str, str] = {}
    several: set[str] = set()
    problem: DataError | None = None
    asked: set[tuple[str, str, str, str]] = set()
    for record in records:
        own = str(record.data.get("name", ""))
        name = data or own
        # scenes are themselves alone, and photos are wherever the caller says
        if name != own if is_scenes(own) or is_scenes(name) else data is None:
            continue
        for task, scores in record.tasks.items():
            reader, source = (scores.definition.get(key) for key in ("reader", "source"))
            if reader and source and (name, task, reader, source) not in asked:
                asked.add((name, task, reader, source))
                folder = open_data(name, images_required=False)
                try:
                    samples = folder.samples(task, reader=reader, source=source, split="test")
                except DataError as error:
                    problem = error
                    continue
                there = (sample for sample in samples if sample.image_path.is_file())
                shown = {str(sample.image_id): sample.image_path for sample in there}
                several |= {key for key in shown if names.setdefault(key, name) != name}
                found |= shown
    if problem is not None and not found:
        raise problem
    return {key: path for key, path in found.items() if key not in several}
