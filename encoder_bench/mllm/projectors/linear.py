"""Projectors that map each patch token, or averages over the grid, by linear layers.

Axes: B images, N patch tokens, D encoder width, M visual tokens, E language model width.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.projector import POOLED_TOKENS, Projector, grid_of, pool_to


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


class LinearProjector(Projector):
    """A linear map of each patch token (LLaVA); with `visual_tokens`, of averages over the grid.

    Reference: Liu et al. 2023, Visual Instruction Tuning (arXiv 2304.08485).
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        self.visual_tokens = settings.visual_tokens or grid[0] * grid[1]
        self.target = grid_of(self.visual_tokens, grid)
        self.linear = nn.Linear(width, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        projected: Tensor = self.linear(pool_to(features, self.grid, self.target))
        return projected


class MLPProjector(Projector):
    """`depth` linear layers with GELU between them; 2 is LLaVA-1.5's `mlp2x_gelu`.

    With `visual_tokens`, patch tokens are averaged over the grid first.

    Reference: Liu et al. 2023, Improved Baselines with Visual Instruction Tuning
    (arXiv 2310.03744).
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        self.visual_tokens = settings.visual_tokens or grid[0] * grid[1]
        self.target = grid_of(self.visual_tokens, grid)
        self.layers = perceptron(settings, width, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        projected: Tensor = self.layers(pool_to(features, self.grid, self.target))
        return projected


class AveragePool(Projector):
    """Average pooling of the grid to `visual_tokens` (64), then an MLP of `depth`.

    Reference: Yao et al. 2024, DeCo (arXiv 2405.20985): pooling beside learned compressors.
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        self.visual_tokens = settings.visual_tokens or min(POOLED_TOKENS, grid[0] * grid[1])
        pooled = settings.model_copy(update={"visual_tokens": self.visual_tokens})
        self.mlp = MLPProjector(pooled, grid=grid, width=width, llm_width=llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        projected: Tensor = self.mlp(features)
        return projected
