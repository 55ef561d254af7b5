"""The same weights from two libraries: whether their features are the same.

What belongs here: loading an encoder from each of its sources and comparing patch tokens on the
same pixels, and each library's own preprocessing on the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from encoder_bench.base.errors import RecipeError, WeightsError
from encoder_bench.encoders.catalog import parse_source
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.registry import find_spec, load_encoder

RELATIVE_TOLERANCE = 1e-3
"""Largest difference of a feature, as a share of the features' standard deviation."""


def compare_sources(
    name: str, *, resolution: int | None = None, weights: Sequence[str] = ()
) -> dict[str, Any]:
    """Load every source of an encoder and compare each pair at one resolution.

    Args:
        name: a registered name.
        resolution: pixels of a side; the first loaded source's own by default.
        weights: `SOURCE=PATH` of checkpoints on disk.

    Returns:
        `pairs` (largest difference of features and of preprocessed pixels, spread, `agree`),
        `not_loaded` (source -> reason) and `agree` over all pairs.

    Raises:
        UnknownNameError: no such encoder.
        RecipeError: a `SOURCE=PATH` that is none of the encoder's.
        WeightsError: fewer than two sources could be loaded.
    """
    spec = find_spec(name)
    forms = [parse_source(source)[0] for source in spec.sources]
    places = _places(name, forms, weights)
    loaded: dict[str, Encoder] = {}
    missing: dict[str, str] = {}
    for form in forms:
        try:
            loaded[form] = load_encoder(
                f"{name}@{form}", resolution=resolution, weights=places.get(form)
            )
        except WeightsError as error:
            missing[form] = str(error)
            continue
        resolution = resolution or loaded[form].resolution[0]
    if len(loaded) < 2:
        reasons = "; ".join(f"{form}: {reason}" for form, reason in missing.items())
        raise WeightsError(
            f"encoder {name}: {len(loaded)} of its {len(forms)} sources could be loaded, two are "
            f"needed to compare{'; ' + reasons if reasons else ''}"
        )
    pairs = [_compare(loaded[a], loaded[b], a, b) for a, b in combinations(loaded, 2)]
    return {
        "encoder": name,
        "pairs": pairs,
        "not_loaded": missing,
        "agree": all(pair["agree"] for pair in pairs),
    }


def _places(name: str, forms: Sequence[str], weights: Sequence[str]) -> dict[str, Path]:
    places = {}
    for entry in weights:
        form, equals, path = entry.partition("=")
        if not equals or form not in forms:
            raise RecipeError(f"--weights {entry}: give {' or '.join(forms)}=PATH for {name}")
        places[form] = Path(path)
    return places


@torch.no_grad()
def _compare(first: Encoder, second: Encoder, a: str, b: str) -> dict[str, Any]:
    picture = _picture()
    pixels, other_pixels = first.transform(picture)[None], second.transform(picture)[None]
    same_size = pixels.shape == other_pixels.shape
    tokens = first(pixels)
    other = second(pixels) if same_size and first.grid == second.grid else None
    spread = float(tokens.std())
    largest = float("inf") if other is None else float((tokens - other).abs().max())
    return {
        "first": a,
        "second": b,
        "resolution": first.resolution[0],
        "largest_difference": largest,
        "spread": spread,
        "largest_pixel_difference": float((pixels - other_pixels).abs().max())
        if same_size
        else float("inf"),
        "agree": largest <= RELATIVE_TOLERANCE * spread,
    }


def _picture() -> Image.Image:
    """Return a 320 by 256 picture with smooth and sharp parts, the same at every call."""
    rows, columns = np.mgrid[0:256, 0:320]
    red = 255 * columns / 319
    green = 127.5 * (1 + np.sin(rows / 9.0))
    blue = 255.0 * (((rows // 32) + (columns // 32)) % 2)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))
