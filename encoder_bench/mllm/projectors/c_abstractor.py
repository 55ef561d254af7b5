"""C-Abstractor: convolutions around an average pooling (Honeybee's projector).

Axes: B images, N patch tokens on a grid (h, w), D encoder width, M visual tokens, E LLM width.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.projector import (
    POOLED_TOKENS,
    Projector,
    grid_of,
    to_map,
    to_tokens,
)


class CAbstractor(Projector):
    """`depth` RegNet blocks, average pooling to `visual_tokens` (64), `depth` blocks, an MLP.

    Honeybee's has depth 3 and is 1024 wide inside; here it is as wide as the encoder. Learned
    position embeddings are added to the patch tokens first.

    Reference: Cha et al. 2023, Honeybee (arXiv 2312.06742); blocks are timm's, as there.
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        patches = grid[0] * grid[1]
        self.visual_tokens = settings.visual_tokens or min(POOLED_TOKENS, patches)
        self.target = grid_of(self.visual_tokens, grid)
        self.positions = nn.Parameter(torch.empty(patches, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        stage = partial(
            RegStage,
            settings.depth,
            width,
            width,
            stride=1,
            dilation=1,
            act_layer=nn.SiLU,
            norm_layer=LayerNorm2d,
        )
        self.before = stage()
        self.after = stage()
        self.readout = nn.Sequential(
            nn.Linear(width, llm_width), nn.SiLU(), nn.Linear(llm_width, llm_width)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        map_BDhw = self.before(to_map(features + self.positions, self.grid))
        pooled_BDhw = F.adaptive_avg_pool2d(map_BDhw, self.target)
        projected: Tensor = self.readout(to_tokens(self.after(pooled_BDhw)))
        return projected
