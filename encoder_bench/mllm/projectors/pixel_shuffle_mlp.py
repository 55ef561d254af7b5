"""Space to depth, then LayerNorm and a multilayer perceptron (InternVL's projector)."""

from __future__ import annotations

from torch import Tensor, nn

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.mlp import perceptron
from encoder_bench.mllm.projectors.projector import Projector
from encoder_bench.mllm.projectors.space_to_depth import space_to_depth


class PixelShuffleMLP(Projector):
    """Joins each square of patches into one token, norms it, and maps it by `depth` linear layers.

    The norm puts encoders whose features differ in scale on one footing.

    Reference: Chen et al. 2024, InternVL 1.5 (arXiv 2404.16821), section 3.1, whose `mlp1` this is
    at depth 2.
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        """Build the layers.

        Raises:
            RecipeError: `visual_tokens` makes no grid near the encoder's.
        """
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        self.shuffle = space_to_depth(grid, settings.visual_tokens)
        joined = width * self.shuffle.factor**2
        self.layers = nn.Sequential(nn.LayerNorm(joined), *perceptron(settings, joined, llm_width))

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, D_llm)`."""
        projected: Tensor = self.layers(self.shuffle(features))
        return projected

    def num_tokens(self, patch_tokens: int) -> int:
        """Return the cells of the smaller grid."""
        return self.shuffle.tokens
