"""WebDataset's tar shards, as img2dataset writes them: `000001.jpg`, `000001.txt`, `000001.json`.

Samples are grouped by the library's own rule; images are never read here, only where they begin.
Reference: webdataset 1.0, tariterators.base_plus_ext and shardlists.expand_urls.
"""

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Reporter
from encoder_bench.data.archives import tar_members
from encoder_bench.data.formats.row import KEYS, BadRow, Place, RawRow, RawRows, caption

_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
_TEXTS = ("txt", "caption", "text")


def expand(root: Path, pattern: str) -> list[Path]:
    """Return the shards that a pattern with braces (`{00000..00331}.tar`) names and that are there.

    Raises:
        DataError: one of them is not there.
    """
    from webdataset.shardlists import expand_urls

    files = [root / name for name in expand_urls(pattern)]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise DataError(f"{absent[0]}: no such shard ({len(absent)} of {len(files)} are missing)")
    return files


def prepare(place: Place, reporter: Reporter) -> Place:
    """Return the place with image names that begin at the shards' common folder."""
    folder = Path(os.path.commonpath([file.parent for file in place.files]))
    return replace(place, images=folder, trusted=True)


def rows(place: Place) -> RawRows:
    """Yield each sample's texts and the name of its image.

    Raises:
        DataError: a shard is damaged.
    """
    for shard in place.files:
        prefix = os.path.relpath(shard, place.images)
        with shard.open("rb") as stream:
            for number, files in enumerate(_samples(shard)):
                content = _content(files, stream.fileno(), prefix, place.source.prompt)
                yield RawRow(shard.name, number, content)


_Members = dict[str, tuple[str, int, int]]
"""Name, offset and size of a sample's files by their ending."""


def _samples(shard: Path) -> Iterator[_Members]:
    from webdataset.tariterators import base_plus_ext

    table = tar_members(shard)
    members = zip(*(table[name].to_pylist() for name in ("name", "offset", "size")), strict=True)
    split = ((base_plus_ext(name), (name, offset, size)) for name, offset, size in members)
    for _, group in itertools.groupby(split, lambda entry: entry[0][0]):
        found = {ending.lower(): member for (_, ending), member in group if ending}
        if found:
            yield found


def _content(files: _Members, shard: int, prefix: str, prompt: str | None) -> object:
    """Return a sample's conversation, where its JSON holds one, or its caption."""
    image = next((files[ending][0] for ending in _IMAGES if ending in files), None)
    images = [f"{prefix}/{image}"] if image else []
    texts = {e: os.pread(shard, files[e][2], files[e][1]) for e in (*_TEXTS, "json") if e in files}
    try:
        about = json.loads(texts.pop("json", b"{}"))
        plain = next((text.decode("utf-8") for text in texts.values()), None)
    except (ValueError, RecursionError) as error:
        return BadRow("unreadable row", f"{next(iter(files.values()))[0]}: {error}")
    if isinstance(about, dict):
        if any(key in about for key in KEYS):
            return {**about, "image": None, "images": images}
        plain = plain if plain is not None else about.get("caption", about.get("text"))
    return caption(images, plain, prompt)
