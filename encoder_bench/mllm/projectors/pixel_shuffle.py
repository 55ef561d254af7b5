"""Projectors that join each square of patches into one token along channels: space to depth.

Axes: B images, N patch tokens on a grid (h, w), D encoder width, M visual tokens, E LLM width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.linear import perceptron
from encoder_bench.mllm.projectors.projector import Projector, grid_of, to_map, to_tokens

_DEFAULT_FACTOR = 2


class PixelShuffle(Projector):
    """Joins each square of patches into one token, then maps it linearly (SmolVLM's connector).

    The side of the squares is the rounded ratio of both grids, 2 without `visual_tokens`.

    Reference: Shi et al. 2016 (arXiv 1609.05158); Marafioti et al. 2025, SmolVLM
    (arXiv 2504.05299).
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        self.target, self.factor = _squares(grid, settings.visual_tokens)
        self.visual_tokens = self.target[0] * self.target[1]
        self.linear = nn.Linear(width * self.factor**2, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        joined = space_to_depth(features, self.grid, self.target, self.factor)
        projected: Tensor = self.linear(joined)
        return projected


class PixelShuffleMLP(Projector):
    """Joins each square of patches into one token, norms it, and maps it by `depth` linear layers.

    The norm puts encoders whose features differ in scale on one footing.

    Reference: Chen et al. 2024, InternVL 1.5 (arXiv 2404.16821), section 3.1, whose `mlp1` this is
    at depth 2.
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        self.target, self.factor = _squares(grid, settings.visual_tokens)
        self.visual_tokens = self.target[0] * self.target[1]
        joined = width * self.factor**2
        self.layers = nn.Sequential(nn.LayerNorm(joined), *perceptron(settings, joined, llm_width))

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        joined = space_to_depth(features, self.grid, self.target, self.factor)
        projected: Tensor = self.layers(joined)
        return projected


def _squares(grid: tuple[int, int], visual_tokens: int | None) -> tuple[tuple[int, int], int]:
    """Return the grid of visual tokens and the side of the square of patches that each joins."""
    if visual_tokens is None:
        factor = _DEFAULT_FACTOR
        return (-(-grid[0] // factor), -(-grid[1] // factor)), factor
    factor = max(1, round((grid[0] * grid[1] / visual_tokens) ** 0.5))
    return grid_of(visual_tokens, grid), factor


def space_to_depth(
    tokens_BND: Tensor, grid: tuple[int, int], target: tuple[int, int], factor: int
) -> Tensor:
    """Return `(B, M, D * factor**2)` of row-major `(B, N, D)`.

    A grid that the factor does not divide is resized bilinearly to the next one that it does.
    """
    map_BDhw = to_map(tokens_BND, grid)
    size = (target[0] * factor, target[1] * factor)
    if size != grid:
        map_BDhw = F.interpolate(map_BDhw, size, mode="bilinear", align_corners=False)
    return to_tokens(F.pixel_unshuffle(map_BDhw, factor))
