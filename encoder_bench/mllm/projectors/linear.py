"""Projectors that keep the grid: linear layers or convolutions on patches, averages or squares.

Axes: B images, N patch tokens on a grid (h, w), D encoder width, M visual tokens, E LLM width,
V vocabulary.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.projector import (
    Projector,
    average_pool,
    grid_of,
    to_tokens,
)

POOLED_TOKENS = 64
"""M of the projectors that always pool, where the recipe does not set it and N is not less."""


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

    def build(self) -> None:
        """Make one linear layer."""
        self.set_target(default=self.patches)
        self.linear = nn.Linear(self.width, self.llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        projected: Tensor = self.linear(self.pooled(features))
        return projected


class LinearFromZero(LinearProjector):
    """A linear map whose weights start at zero and whose bias is the mean word embedding.

    At first every image is the same token, and one that the language model knows how to read. So
    images differ by what training taught of them and by nothing else; from random weights each has
    a random token of its own, by which few images are memorised. Weight decay shrinks towards that
    common token, as ridge regression shrinks towards the mean.

    Reference: Zhang et al. 2023, ControlNet (arXiv 2302.05543), zero convolutions; Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models", the mean embedding.
    """

    def build(self) -> None:
        """Make one linear layer of zero weights."""
        super().build()
        nn.init.zeros_(self.linear.weight)

    @torch.no_grad()
    def start_from(self, embeddings: Tensor) -> None:
        """Set the bias to the mean of `(V, E)` embeddings."""
        self.linear.bias.copy_(embeddings.float().mean(dim=0))


class MLPProjector(Projector):
    """`depth` linear layers with GELU between them; 2 is LLaVA-1.5's `mlp2x_gelu`.

    With `visual_tokens`, patch tokens are averaged over the grid first.

    Reference: Liu et al. 2023, Improved Baselines with Visual Instruction Tuning
    (arXiv 2310.03744).
    """

    def build(self) -> None:
        """Make `perceptron`."""
        self.set_target(default=self.patches)
        self.layers = perceptron(self.settings, self.width, self.llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        projected: Tensor = self.layers(self.pooled(features))
        return projected


class AveragePool(Projector):
    """Average pooling of the grid to `visual_tokens` (64), then an MLP of `depth`.

    Reference: Yao et al. 2024, DeCo (arXiv 2405.20985): pooling beside learned compressors.
    """

    def build(self) -> None:
        """Make the MLP with its pooling."""
        self.set_target(default=min(POOLED_TOKENS, self.patches))
        settings = self.settings.model_copy(update={"visual_tokens": self.visual_tokens})
        self.mlp = MLPProjector(
            settings, grid=self.grid, width=self.width, llm_width=self.llm_width
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        projected: Tensor = self.mlp(features)
        return projected


class PixelShuffle(Projector):
    """Joins each square of patches into one token, then maps it linearly (SmolVLM's connector).

    The side of the squares is the rounded ratio of both grids, 2 without `visual_tokens`. A grid
    that the side does not divide is resized bilinearly to the next one that it does.

    Reference: Shi et al. 2016 (arXiv 1609.05158); Marafioti et al. 2025, SmolVLM
    (arXiv 2504.05299).
    """

    def build(self) -> None:
        """Find the squares and make the layers."""
        tokens, side = self.settings.visual_tokens, 2
        if tokens is not None:
            side = max(1, round((self.patches / tokens) ** 0.5))
            self.target = grid_of(tokens, self.grid)
        else:
            self.target = (-(-self.grid[0] // side), -(-self.grid[1] // side))
        self.side, self.visual_tokens = side, self.target[0] * self.target[1]
        self.build_layers(self.width * side**2)

    def build_layers(self, width: int) -> None:
        """Make one linear layer on joined tokens of `width`."""
        self.linear = nn.Linear(width, self.llm_width)

    def joined(self, features: Tensor) -> Tensor:
        """Return `(B, M, D * side**2)`: space to depth."""
        map_BDhw = self.to_map(features)
        size = (self.target[0] * self.side, self.target[1] * self.side)
        if size != self.grid:
            map_BDhw = F.interpolate(map_BDhw, size, mode="bilinear", align_corners=False)
        return to_tokens(F.pixel_unshuffle(map_BDhw, self.side))

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        projected: Tensor = self.linear(self.joined(features))
        return projected


class PixelShuffleMLP(PixelShuffle):
    """Joins each square of patches into one token, norms it, and maps it by `depth` linear layers.

    The norm puts encoders whose features differ in scale on one footing.

    Reference: Chen et al. 2024, InternVL 1.5 (arXiv 2404.16821), section 3.1, whose `mlp1` this is
    at depth 2.
    """

    def build_layers(self, width: int) -> None:
        """Make the norm and `perceptron`."""
        layers = perceptron(self.settings, width, self.llm_width)
        self.layers = nn.Sequential(nn.LayerNorm(width), *layers)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        projected: Tensor = self.layers(self.joined(features))
        return projected


class CAbstractor(Projector):
    """`depth` RegNet blocks, average pooling to `visual_tokens` (64), `depth` blocks, an MLP.

    Honeybee's has depth 3 and is 1024 wide inside; here it is as wide as the encoder. Learned
    position embeddings are added to the patch tokens first.

    Reference: Cha et al. 2023, Honeybee (arXiv 2312.06742); blocks are timm's, as there.
    """

    def build(self) -> None:
        """Make both stages and the MLP."""
        from timm.layers import LayerNorm2d
        from timm.models.regnet import RegStage

        width, llm_width = self.width, self.llm_width
        self.set_target(default=min(POOLED_TOKENS, self.patches))
        self.positions = nn.Parameter(torch.empty(self.patches, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        stage = partial(RegStage, self.settings.depth, width, width, stride=1, dilation=1)
        self.before = stage(act_layer=nn.SiLU, norm_layer=LayerNorm2d)
        self.after = stage(act_layer=nn.SiLU, norm_layer=LayerNorm2d)
        self.readout = nn.Sequential(
            nn.Linear(width, llm_width), nn.SiLU(), nn.Linear(llm_width, llm_width)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        map_BDhw = self.before(self.to_map(features + self.positions))
        pooled_BDhw = average_pool(map_BDhw, self.target)
        projected: Tensor = self.readout(to_tokens(self.after(pooled_BDhw)))
        return projected
