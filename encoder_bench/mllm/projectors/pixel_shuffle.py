"""Space to depth, then a linear layer (SmolVLM's connector)."""

from __future__ import annotations

from torch import Tensor, nn

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.projector import Projector
from encoder_bench.mllm.projectors.space_to_depth import space_to_depth


class PixelShuffle(Projector):
    """Joins each square of patches into one token along channels, then maps it linearly.

    Reference: Shi et al. 2016 (arXiv 1609.05158); Marafioti et al. 2025, SmolVLM
    (arXiv 2504.05299).
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        """Build the layer.

        Raises:
            RecipeError: `visual_tokens` makes no grid near the encoder's.
        """
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        self.shuffle = space_to_depth(grid, settings.visual_tokens)
        self.linear = nn.Linear(width * self.shuffle.factor**2, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, D_llm)`."""
        projected: Tensor = self.linear(self.shuffle(features))
        return projected

    def num_tokens(self, patch_tokens: int) -> int:
        """Return the cells of the smaller grid."""
        return self.shuffle.tokens
