"""A multilayer perceptron on each patch token (LLaVA-1.5's projector)."""

from __future__ import annotations

from torch import Tensor, nn

from encoder_bench.mllm.projectors.grid import grid_of, pool_to
from encoder_bench.mllm.projectors.projector import Projector
from encoder_bench.recipes import ProjectorSettings


class MLPProjector(Projector):
    """`depth` linear layers with GELU between them; 2 is LLaVA-1.5's `mlp2x_gelu`.

    With `visual_tokens`, patch tokens are averaged over the grid first.

    Reference: Liu et al. 2023, Improved Baselines with Visual Instruction Tuning
    (arXiv 2310.03744).
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        """Build the layers.

        Raises:
            RecipeError: `visual_tokens` makes no grid near the encoder's.
        """
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        budget = settings.visual_tokens
        self.target = grid if budget is None else grid_of(budget, grid)
        layers: list[nn.Module] = [nn.Linear(width, llm_width)]
        for _ in range(settings.depth - 1):
            layers += [nn.GELU(), nn.Linear(llm_width, llm_width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, D_llm)`."""
        projected: Tensor = self.layers(pool_to(features, self.grid, self.target))
        return projected

    def num_tokens(self, patch_tokens: int) -> int:
        """Return the budget, else as many as there are patches."""
        return patch_tokens if self.settings.visual_tokens is None else self.settings.visual_tokens
