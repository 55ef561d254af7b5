"""Space to depth, then a linear layer (InternVL's and SmolVLM's connector)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.mllm.projectors.grid import grid_of, to_map, to_tokens
from encoder_bench.mllm.projectors.projector import Projector
from encoder_bench.recipes import ProjectorSettings

_DEFAULT_FACTOR = 2


class PixelShuffle(Projector):
    """Joins each square of patches into one token along channels, then maps it linearly.

    The square's side is the rounded ratio of the patch grid to the grid of `visual_tokens`, 2 by
    default. A grid that it does not divide is resized bilinearly to the next one that it does.

    Reference: Shi et al. 2016 (arXiv 1609.05158); Chen et al. 2024, InternVL 1.5
    (arXiv 2404.16821).
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        """Build the layers.

        Raises:
            RecipeError: `visual_tokens` makes no grid near the encoder's.
        """
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        if settings.visual_tokens is None:
            self.factor = _DEFAULT_FACTOR
            self.target = (-(-grid[0] // self.factor), -(-grid[1] // self.factor))
        else:
            self.target = grid_of(settings.visual_tokens, grid)
            self.factor = max(1, round((grid[0] * grid[1] / settings.visual_tokens) ** 0.5))
        self.linear = nn.Linear(width * self.factor**2, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, D_llm)`."""
        feature_map = to_map(features, self.grid)
        size = (self.target[0] * self.factor, self.target[1] * self.factor)
        if size != self.grid:
            feature_map = F.interpolate(feature_map, size, mode="bilinear", align_corners=False)
        projected: Tensor = self.linear(to_tokens(F.pixel_unshuffle(feature_map, self.factor)))
        return projected

    def num_tokens(self, patch_tokens: int) -> int:
        """Return the cells of the smaller grid."""
        return self.target[0] * self.target[1]
