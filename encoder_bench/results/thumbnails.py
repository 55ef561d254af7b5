"""Small pictures inside HTML: an image file as a data URI.

What belongs here: shrinking one image. Which images are shown is chosen by the pages.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

THUMBNAIL_PIXELS = 192
_JPEG_QUALITY = 72
_LOSSLESS_PIXELS = 96


def data_uri(path: Path) -> str | None:
    """Return an image of at most 192 x 192 pixels as a data URI; None if unreadable.

    Very small images stay PNG, since JPEG would smear them.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    kind = "png" if max(small.size) <= _LOSSLESS_PIXELS else "jpeg"
    buffer = io.BytesIO()
    small.save(buffer, kind, quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
