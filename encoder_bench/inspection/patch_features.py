"""What an encoder's patch tokens say about a picture: their main directions, and their similarity.

What belongs here: numbers for a picture to be drawn from. Drawing is `feature_picture.py`'s.

Axes: I images, h and w the patch grid, N = h * w, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.errors import RecipeError
from encoder_bench.encoders.encoder import Encoder, encode_images

_LOW, _HIGH = 0.01, 0.99


@dataclass(frozen=True, slots=True)
class PatchFeatures:
    """One encoder's view of some pictures.

    Attributes:
        encoder: the name.
        display_name: for titles.
        pretrained: False for random weights.
        colours: `(I, h, w, 3)` 0..1, the first three principal components.
        similarity: `(I, h, w)` cosine to the chosen patch of the same picture, -1..1.
        chosen: (row, column) of that patch on the grid.
        explained: share of the variance that the three components hold.
    """

    encoder: str
    display_name: str
    pretrained: bool
    colours: Tensor
    similarity: Tensor
    chosen: tuple[int, int]
    explained: float


@torch.no_grad()
def patch_features(
    encoder: Encoder, images: Sequence[Image.Image], *, point: tuple[float, float] = (0.5, 0.5)
) -> PatchFeatures:
    """Return an encoder's view of pictures, its components found over all of them together.

    Reference: Oquab et al. 2023 (DINOv2), figure 1: principal components of patch features shown
    as red, green and blue; one set of components for all pictures, so that a colour means the same
    in each.

    Args:
        encoder: on any device, in eval mode.
        images: pictures of any size.
        point: (across, down) as shares of what the encoder is shown: which patch the others are
            compared to.

    Raises:
        RecipeError: the point lies outside.
    """
    if not all(0.0 <= part <= 1.0 for part in point):
        raise RecipeError(f"--point {point[0]},{point[1]}: give shares from 0 to 1, as in 0.5,0.5")
    tokens = torch.cat(list(encode_images(encoder, images, batch_size=1)))
    height, width = encoder.grid
    row, column = min(height - 1, int(point[1] * height)), min(width - 1, int(point[0] * width))
    unit = F.normalize(tokens, dim=-1)
    similarity = (unit @ unit[:, row * width + column, :, None]).squeeze(-1)
    colours, explained = principal_colours(tokens)
    return PatchFeatures(
        encoder=encoder.spec.name,
        display_name=encoder.spec.display_name,
        pretrained=encoder.pretrained,
        colours=colours.reshape(len(tokens), height, width, 3),
        similarity=similarity.reshape(len(tokens), height, width),
        chosen=(row, column),
        explained=explained,
    )


def principal_colours(tokens: Tensor) -> tuple[Tensor, float]:
    """Return `(I, N, 3)` colours in 0..1 from the three main components, and what they explain.

    Each component is stretched from its first to its ninety-ninth percentile; its sign is set so
    that the largest loading is positive, since a component's own is arbitrary.

    Args:
        tokens: `(I, N, D)`, D at least 3.
    """
    flat = tokens.reshape(-1, tokens.shape[-1])
    centred = flat - flat.mean(dim=0)
    _, strengths, directions = torch.linalg.svd(centred, full_matrices=False)
    main = directions[:3]
    largest = main.gather(1, main.abs().argmax(dim=1, keepdim=True))
    scores = centred @ (main * largest.sign()).T
    low, high = (torch.quantile(scores, level, dim=0) for level in (_LOW, _HIGH))
    colours = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
    if colours.shape[1] < 3:
        colours = F.pad(colours, (0, 3 - colours.shape[1]))
    energy = strengths.square()
    explained = float(energy[:3].sum() / energy.sum().clamp_min(1e-12))
    return colours.reshape(*tokens.shape[:2], 3), explained
