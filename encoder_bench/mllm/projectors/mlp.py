"""A multilayer perceptron on each patch token (LLaVA-1.5's projector)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.grid import grid_of, pool_to
from encoder_bench.mllm.projectors.projector import Projector


def perceptron(settings: ProjectorSettings, width: int, llm_width: int) -> nn.Sequential:
    """Return `depth` linear layers from `width` to `llm_width` with GELU between them.

    Hidden layers are `hidden_width` wide, or as wide as the language model where it is None.
    """
    hidden = settings.hidden_width or llm_width
    widths = [width, *[hidden] * (settings.depth - 1), llm_width]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


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
        self.layers = perceptron(settings, width, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, D_llm)`."""
        projected: Tensor = self.layers(pool_to(features, self.grid, self.target))
        return projected

    def ends(self) -> tuple[nn.Linear, nn.Linear]:
        """Return the first and the last linear layer."""
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        return linear[0], linear[-1]

    def num_tokens(self, patch_tokens: int) -> int:
        """Return the budget, else as many as there are patches."""
        return patch_tokens if self.settings.visual_tokens is None else self.settings.visual_tokens
