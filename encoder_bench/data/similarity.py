"""Images that are the same, or nearly: exact hashes of files and perceptual hashes of pictures.

What belongs here: comparing training images with test images. An image that was trained on, scaled
or compressed again, is still an image that was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_file
from encoder_bench.base.progress import Reporter
from encoder_bench.data.images import load_image

SIDE = 16
NEAR_SHARE = 0.1
"""Of the bits that are set in the two. Halving 239 COCO photographs and compressing them at JPEG
quality 40 changes 6 bits at the median and 18 at the 99th percentile; different ones 63 or more."""
NEAR_GREY = 4.0
"""Mean difference of 32 x 32 grey values from 0 to 255; keeps drawings on one background apart."""
_FLAT = 8
_THUMB = 32


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A file's sha256, its picture's difference hash (None where it is flat), and a thumbnail.

    Attributes:
        digest: hexadecimal.
        bits: `(32,)` packed.
        grey: `(32, 32)`, from 0 to 255.
    """

    digest: str
    bits: NDArray[np.uint8] | None
    grey: NDArray[np.uint8]


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Return `(32, 32)` grey values."""
    small = image.convert("L").resize((_THUMB, _THUMB), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.uint8)


def difference_hash(image: Image.Image) -> NDArray[np.uint8] | None:
    """Return 256 bits, packed into `(32,)`: whether each of 16 x 16 cells is darker than the next.

    None where the cells hardly differ: every flat picture has the same hash.

    Reference: Krawetz 2013, "Kind of Like That" (dHash), at twice its side.
    """
    grey = image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    cells = np.asarray(grey, dtype=np.int16)
    if int(cells.max()) - int(cells.min()) < _FLAT:
        return None
    return np.packbits(cells[:, 1:] > cells[:, :-1])


def fingerprints(
    paths: Sequence[Path], reporter: Reporter
) -> tuple[dict[Path, Fingerprint], list[str]]:
    """Return the fingerprint of each readable image, and a line for each that is not readable."""
    found: dict[Path, Fingerprint] = {}
    unreadable: list[str] = []

    def read(path: Path) -> Fingerprint | str:
        try:
            image = load_image(path)
            return Fingerprint(hash_file(path), difference_hash(image), thumbnail(image))
        except (DataError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor() as pool, reporter.phase("images", len(paths), "images") as phase:
        for path, answer in zip(paths, pool.map(read, paths), strict=True):
            if isinstance(answer, str):
                unreadable.append(answer)
            else:
                found[path] = answer
            phase.advance()
    return found, unreadable


def same_files(
    train: Mapping[Path, Fingerprint], test: Mapping[Path, Fingerprint]
) -> list[tuple[Path, Path]]:
    """Return pairs of a training and a test image with the same bytes."""
    by_digest = {entry.digest: path for path, entry in train.items()}
    return [
        (by_digest[entry.digest], path) for path, entry in test.items() if entry.digest in by_digest
    ]


def near_duplicates(
    train: Mapping[Path, Fingerprint], test: Mapping[Path, Fingerprint]
) -> list[tuple[Path, Path, int]]:
    """Return pairs whose pictures differ in few of the bits set in them, though their bytes do."""
    theirs = {path: entry.bits for path, entry in train.items() if entry.bits is not None}
    if not theirs:
        return []
    paths, stacked = list(theirs), np.stack(list(theirs.values()))
    set_bits = np.bitwise_count(stacked).sum(axis=1)
    pairs = []
    for path, entry in test.items():
        if entry.bits is None:
            continue
        distance = np.bitwise_count(stacked ^ entry.bits).sum(axis=1)
        limit = NEAR_SHARE * (set_bits + np.bitwise_count(entry.bits).sum())
        pairs += [
            (paths[index], path, int(distance[index]))
            for index in np.flatnonzero(distance <= limit)
            if train[paths[index]].digest != entry.digest
            and _grey_difference(train[paths[index]], entry) <= NEAR_GREY
        ]
    return pairs


def _grey_difference(one: Fingerprint, other: Fingerprint) -> float:
    return float(np.abs(one.grey.astype(np.int16) - other.grey).mean())
