"""Average pooling to a fixed token budget, then the two-layer MLP."""

from __future__ import annotations

from torch import Tensor

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.mlp import MLPProjector
from encoder_bench.mllm.projectors.projector import Projector

_DEFAULT_TOKENS = 64


class AveragePool(Projector):
    """Adaptive average pooling of the grid to `visual_tokens` (64), then an MLP of `depth`.

    Reference: Yao et al. 2024, DeCo (arXiv 2405.20985): pooling beside learned compressors.
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        """Build the layers.

        Raises:
            RecipeError: `visual_tokens` makes no grid near the encoder's.
        """
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        budget = settings.visual_tokens or min(_DEFAULT_TOKENS, grid[0] * grid[1])
        pooled = settings.model_copy(update={"visual_tokens": budget})
        self.budget = budget
        self.mlp = MLPProjector(pooled, grid=grid, width=width, llm_width=llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, D_llm)`."""
        projected: Tensor = self.mlp(features)
        return projected

    def num_tokens(self, patch_tokens: int) -> int:
        """Return the budget."""
        return self.budget
