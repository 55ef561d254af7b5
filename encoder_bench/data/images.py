"""Image files: opened as RGB, and compared by bytes and by what they show."""

import errno
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Reporter
from encoder_bench.data.archives import read_member, split_archive

HASH_SIDE = 16
NEAR_SHARE = 0.1
"""Of the bits that are set in the two hashes. Halving 335 COCO photographs and compressing them at
JPEG quality 40 changes 1.4% at the median, 9% at the 99th percentile; others differ
by 23% or more."""
NEAR_GREY = 4.0
"""Mean difference of 32 x 32 grey values from 0 to 255; keeps drawings on one background apart."""
_FLAT = 8
_BLOCKS = 4
_THUMBNAIL = (32, 32)


IMAGE_LOADING = (
    "RGB of the first frame, turned by its EXIF orientation, 16-bit grey scaled to 8 bits, "
    "transparency on white"
)
"""What `load_image` does, as records say it."""
LOADING = "2"
"""Raised where the pixels of a file change, so that no cached feature outlives it."""
MAX_ASPECT = 100
"""Scaled to an encoder's shorter side, a longer image would take gigabytes."""


def read_image_bytes(path: Path) -> bytes:
    """Return the content of an image file, or of an image in an archive (`shard.tar/000001.jpg`).

    Raises:
        FileNotFoundError: there is none.
        DataError: the archive lacks it or is damaged.
        OSError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        inside = split_archive(path)
        if inside is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        return read_member(*inside)


def hash_image(path: Path) -> str:
    """Return the sha256 of an image's bytes; raises as `read_image_bytes`."""
    return hashlib.sha256(read_image_bytes(path)).hexdigest()


def load_image(path: Path, data: bytes | None = None) -> Image.Image:
    """Return an image as RGB, every pixel decoded; of several frames the first.

    It is turned as its EXIF orientation says, 16-bit grey is scaled to 8 bits, and transparency is
    laid on white. `data` is its content where that has been read already.

    Raises:
        DataError: missing, truncated, too large, too long, floats, or not an image; names the file.
    """
    try:
        with Image.open(io.BytesIO(data or read_image_bytes(path))) as image:
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise DataError(
                    f"{path}: {image.width} x {image.height} pixels, one side more than "
                    f"{MAX_ASPECT} times the other; crop it or leave it out"
                )
            return as_rgb(ImageOps.exif_transpose(image), path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image, or its header is damaged") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large ({error}); scale it down") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be decoded ({error}); fetch it again") from error


def as_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Return an image as `load_image` does, without the orientation; `path` is for errors.

    Raises:
        DataError: pixels of 32 bits.
    """
    if image.mode in ("F", "I"):
        raise DataError(f"{path}: pixels of 32 bits, whose white is unknown; save it with 8 or 16")
    if image.mode.startswith("I;16"):
        grey = np.rint(np.asarray(image).astype(np.float64) * (255 / 65535))
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


class Fingerprint(NamedTuple):
    """What an image file is compared by.

    The sha256; a difference hash, `(32,)` packed, None where the picture is flat, since all flat
    pictures have one hash; and a `(32, 32)` thumbnail of grey values from 0 to 255.
    """

    digest: str
    bits: NDArray[np.uint8] | None
    grey: NDArray[np.int16]


def fingerprint(path: Path) -> Fingerprint:
    """Return an image file's fingerprint.

    Reference: Krawetz 2013, "Kind of Like That" (dHash), at twice its side.
    """
    import imagehash

    image = load_image(path).convert("L")
    grey = np.asarray(image.resize(_THUMBNAIL, Image.Resampling.BOX), dtype=np.int16)
    flat = np.ptp(grey) < _FLAT
    bits = None if flat else np.packbits(imagehash.dhash(image, HASH_SIDE).hash)
    return Fingerprint(hash_image(path), bits, grey)


def fingerprints(
    paths: Sequence[Path], reporter: Reporter
) -> tuple[dict[Path, Fingerprint], list[str]]:
    """Return the fingerprint of each readable image, and a line per image that is not readable."""
    found: dict[Path, Fingerprint] = {}
    unreadable: list[str] = []

    def read(path: Path) -> None:
        try:
            found[path] = fingerprint(path)
        except (DataError, OSError) as error:
            unreadable.append(str(error))

    with ThreadPoolExecutor() as pool, reporter.phase("images", len(paths), "images") as phase:
        for _ in pool.map(read, paths):
            phase.advance()
    return found, sorted(unreadable)


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
    """Return pairs that show nearly the same in different files, with the bits that differ.

    Only images with nearly the same mean grey in each of 4 x 4 blocks are compared, which a tree
    finds. No pair is lost by that: the means of blocks differ by no more than the pixels do.
    """
    from scipy.spatial import cKDTree

    theirs = [(path, entry) for path, entry in train.items() if entry.bits is not None]
    ours = [(path, entry) for path, entry in test.items() if entry.bits is not None]
    if not theirs or not ours:
        return []
    stacked = np.stack([entry.bits for _, entry in theirs if entry.bits is not None])
    set_bits = np.bitwise_count(stacked).sum(axis=1)
    tree = cKDTree(np.stack([_blocks(entry.grey) for _, entry in theirs]))
    reach = _BLOCKS**2 * NEAR_GREY + 1e-6
    pairs = []
    for path, entry in ours:
        assert entry.bits is not None
        near = np.array(sorted(tree.query_ball_point(_blocks(entry.grey), reach, p=1)), np.int64)
        distance = np.bitwise_count(stacked[near] ^ entry.bits).sum(axis=1)
        limit = NEAR_SHARE * (set_bits[near] + np.bitwise_count(entry.bits).sum())
        for place in np.flatnonzero(distance <= limit):
            other_path, other = theirs[near[place]]
            if other.digest != entry.digest and np.abs(other.grey - entry.grey).mean() <= NEAR_GREY:
                pairs.append((other_path, path, int(distance[place])))
    return pairs


def _blocks(grey: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return the mean of each of 4 x 4 blocks, `(16,)`."""
    side = len(grey) // _BLOCKS
    means: NDArray[np.float64] = grey.reshape(_BLOCKS, side, _BLOCKS, side).mean(axis=(1, 3))
    return means.ravel()
