"""Opening image files: fully decoded RGB, or one clear line on what is wrong with the file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from encoder_bench.base.errors import DataError


def load_image(path: Path) -> Image.Image:
    """Return an image file as RGB, with every pixel decoded.

    Raises:
        DataError: missing, truncated, too large or not an image; names the file.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image, or its header is damaged") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded ({error}); fetch it again") from error


def image_inside(folder: Path, name: str, *, where: str) -> Path:
    """Return the path of a data file's image name, checked to lie inside its folder.

    Args:
        folder: where the images are.
        name: the name or relative path as the data file gives it.
        where: the data file and row, for the error.

    Raises:
        DataError: the path leaves the folder, by `..`, by being absolute, or through a link.
    """
    root = folder.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise DataError(f"{where}: image path '{name}' leaves the folder {folder}")
    return path
