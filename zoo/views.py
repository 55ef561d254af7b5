"""The augmentations that objectives see images through, drawn from one generator.

Images are batches in 0..1. Axes: B images, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
"""What the bundled encoders' preprocessors declare."""


WIDE, NARROW = (0.5, 1.0), (0.2, 0.5)
"""Shares of an image's area. The papers' narrow crops (0.05 to 0.4) show an object's part; of a
scene of small things they would show one thing, which no other crop has."""
CROPS = (
    "2 crops of 50-100% at 72 px and 2 of 20-50% at 36 px, flips, brightness and contrast jitter "
    "0.4, each channel's 0.2, a fifth grey"
)
SHIFTS = "shift by up to 2 px, brightness and contrast jitter 0.2"
"""The two kinds of augmentation in words, for the cards."""


def normalise(images: Tensor) -> Tensor:
    """Return `(B, 3, H, W)` images of 0..1 in -1..1."""
    return images * 2.0 - 1.0


def jitter(images: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Return images with brightness and contrast each scaled by 1 - strength .. 1 + strength."""
    count = len(images)
    draw = 2.0 * torch.rand(2, count, 1, 1, 1, generator=generator) - 1.0
    brightness, contrast = (1.0 + strength * draw).to(images).unbind()
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean * brightness).clamp(0.0, 1.0)


def recolour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images with each channel scaled by 0.8 to 1.2, and a fifth of them grey.

    The background's colours alone would show whose crop a crop is.
    """
    draw = torch.rand(4, len(images), 1, 1, 1, generator=generator).to(images)
    images = images * torch.cat(list(0.8 + 0.4 * draw[:3]), dim=1)
    grey = images.mean(dim=1, keepdim=True)
    return torch.where(draw[3] < 0.2, grey, images).clamp(0.0, 1.0)


def shift_and_jitter(images: Tensor, generator: torch.Generator, *, largest: int = 2) -> Tensor:
    """Return images moved by up to `largest` pixels each way (edges repeated), then jittered.

    Left stays left and every object stays in sight, so that captions and labels stay true.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (largest,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * largest + 1, (count, 2), generator=generator).to(images.device)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    index = torch.arange(count, device=images.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    return jitter(moved.permute(0, 3, 1, 2), generator, 0.2)


def random_crops(
    images: Tensor, generator: torch.Generator, *, scale: tuple[float, float], size: int
) -> Tensor:
    """Return `(B, 3, size, size)` random crops, flipped half of the time, jittered, recoloured.

    `scale` is the smallest and largest share of the image's area.
    """
    count = len(images)
    draw = torch.rand(5, count, generator=generator)
    side = (scale[0] + (scale[1] - scale[0]) * draw[0]).sqrt()
    flip = 1.0 - 2.0 * (draw[1] < 0.5).float()
    place = (2.0 * draw[2:4] - 1.0) * (1.0 - side)
    zero = torch.zeros(count)
    rows = [side * flip, zero, place[0], zero, side, place[1]]
    affine = torch.stack(rows, dim=-1).reshape(count, 2, 3).to(images)
    grid = F.affine_grid(affine, [count, 3, size, size], align_corners=False)
    cut = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return recolour(jitter(cut, generator, 0.4), generator)


def global_and_local_crops(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return `2 * B` wide crops at full size and as many narrow ones at half of it."""
    size = images.shape[-1]
    wide = [random_crops(images, generator, scale=WIDE, size=size) for _ in range(2)]
    narrow = [random_crops(images, generator, scale=NARROW, size=size // 2) for _ in range(2)]
    return torch.cat(wide), torch.cat(narrow)
