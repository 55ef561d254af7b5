"""C-Abstractor: convolutions around an average pooling (Honeybee's projector).

Axes: B images, N patch tokens on a grid (h, w), D encoder width, M visual tokens, E LLM width.
"""

from functools import partial

import torch
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.mllm.projectors.linear import POOLED_TOKENS
from encoder_bench.mllm.projectors.projector import Projector, to_tokens


class CAbstractor(Projector):
    """`depth` RegNet blocks, average pooling to `visual_tokens` (64), `depth` blocks, an MLP.

    Honeybee's has depth 3 and is 1024 wide inside; here it is as wide as the encoder. Learned
    position embeddings are added to the patch tokens first.

    Reference: Cha et al. 2023, Honeybee (arXiv 2312.06742); blocks are timm's, as there.
    """

    def build(self) -> None:
        """Make both stages and the MLP."""
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
        pooled_BDhw = F.adaptive_avg_pool2d(map_BDhw, self.target)
        projected: Tensor = self.readout(to_tokens(self.after(pooled_BDhw)))
        return projected
