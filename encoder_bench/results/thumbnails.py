"""Small pictures inside HTML: images as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from encoder_bench.base.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL_PIXELS = 192
_LOSSLESS_PIXELS = 96


def data_uri(path: Path) -> str | None:
    """Return an image of at most 192 x 192 pixels as a data URI; None if unreadable.

    Very small images stay PNG, since JPEG would smear them.
    """
    from PIL import Image, UnidentifiedImageError

    from encoder_bench.data.images import read_image_bytes

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
