"""Arithmetic on patch grids that the spatial projectors share.

What belongs here: choosing an output grid for a token budget, and moving between token lists and
feature maps.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.errors import RecipeError

_MOST_STRETCH = 2.0


def grid_of(tokens: int, like: tuple[int, int]) -> tuple[int, int]:
    """Return the (h, w) with h * w = `tokens` whose shape is nearest to that of `like`.

    >>> grid_of(64, (16, 16)), grid_of(32, (16, 16)), grid_of(8, (8, 16))
    ((8, 8), (4, 8), (2, 4))

    Raises:
        RecipeError: every such grid is more than twice as stretched as `like` (17 on a square).
    """
    aspect = like[1] / like[0]

    def stretch(height: int) -> float:
        ratio = (tokens // height) / height / aspect
        return max(ratio, 1 / ratio)

    heights = [height for height in range(1, tokens + 1) if tokens % height == 0]
    best = min(heights, key=stretch)
    if stretch(best) > _MOST_STRETCH + 1e-9:
        near = [n for n in range(max(1, tokens - 8), tokens + 9) if _fits(n, aspect)]
        choices = ", ".join(str(n) for n in near)
        raise RecipeError(
            f"projector.visual_tokens {tokens}: no grid of so many tokens is near the encoder's "
            f"{like[0]}x{like[1]}; near it are {choices}"
        )
    return best, tokens // best


def _fits(tokens: int, aspect: float) -> bool:
    ratios = [
        (tokens // height) / height / aspect
        for height in range(1, tokens + 1)
        if tokens % height == 0
    ]
    return any(max(ratio, 1 / ratio) <= _MOST_STRETCH + 1e-9 for ratio in ratios)


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return `(B, D, h, w)` of row-major `(B, N, D)`."""
    if tokens.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"{tokens.shape[1]} patch tokens do not fill a grid of {grid}")
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *grid)


def to_tokens(feature_map: Tensor) -> Tensor:
    """Return row-major `(B, h * w, D)` of `(B, D, h, w)`."""
    return feature_map.flatten(2).transpose(1, 2)


def pool_to(tokens: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Average `(B, N, D)` on `grid` down (or up) to `target`: `(B, target h * w, D)`."""
    if grid == target:
        return tokens
    return to_tokens(F.adaptive_avg_pool2d(to_map(tokens, grid), target))
