"""One linear layer on each patch token (LLaVA's first projector)."""

from __future__ import annotations

from torch import Tensor, nn

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.grid import grid_of, pool_to
from encoder_bench.mllm.projectors.projector import Projector


class LinearProjector(Projector):
    """A linear map of each patch token; with `visual_tokens`, of averages over the grid.

    Reference: Liu et al. 2023, Visual Instruction Tuning (arXiv 2304.08485).
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        """Build the layer.

        Raises:
            RecipeError: `visual_tokens` makes no grid near the encoder's.
        """
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        budget = settings.visual_tokens
        self.target = grid if budget is None else grid_of(budget, grid)
        self.linear = nn.Linear(width, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, D_llm)`."""
        projected: Tensor = self.linear(pool_to(features, self.grid, self.target))
        return projected

    def num_tokens(self, patch_tokens: int) -> int:
        """Return the budget, else as many as there are patches."""
        return patch_tokens if self.settings.visual_tokens is None else self.settings.visual_tokens
