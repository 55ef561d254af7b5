"""Squares of patches joined into one token along channels, on any grid.

What belongs here: the arithmetic that both pixel-shuffle projectors share; it has no weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from encoder_bench.mllm.projectors.grid import grid_of, to_map, to_tokens

_DEFAULT_FACTOR = 2


@dataclass(frozen=True, slots=True)
class SpaceToDepth:
    """How a patch grid becomes a smaller one with wider tokens.

    Attributes:
        grid: (h, w) of the patch tokens.
        target: (h, w) of the visual tokens.
        factor: side of the square of patches that one visual token joins.
    """

    grid: tuple[int, int]
    target: tuple[int, int]
    factor: int

    @property
    def tokens(self) -> int:
        """M, the visual tokens."""
        return self.target[0] * self.target[1]

    def __call__(self, features: Tensor) -> Tensor:
        """Return `(B, M, D * factor**2)` of row-major `(B, N, D)`.

        A grid that the factor does not divide is resized bilinearly to the next one that it does.
        """
        feature_map = to_map(features, self.grid)
        size = (self.target[0] * self.factor, self.target[1] * self.factor)
        if size != self.grid:
            feature_map = F.interpolate(feature_map, size, mode="bilinear", align_corners=False)
        return to_tokens(F.pixel_unshuffle(feature_map, self.factor))


def space_to_depth(grid: tuple[int, int], visual_tokens: int | None) -> SpaceToDepth:
    """Return the squares for a token budget: the rounded ratio of the two grids, 2 by default.

    Raises:
        RecipeError: `visual_tokens` makes no grid near the encoder's.
    """
    if visual_tokens is None:
        factor = _DEFAULT_FACTOR
        return SpaceToDepth(grid, (-(-grid[0] // factor), -(-grid[1] // factor)), factor)
    factor = max(1, round((grid[0] * grid[1] / visual_tokens) ** 0.5))
    return SpaceToDepth(grid, grid_of(visual_tokens, grid), factor)
