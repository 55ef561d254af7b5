"""Q-Former: learned queries attend to each other, then to the patch tokens.

Axes: B images, N patch tokens, D encoder width, M visual tokens (queries), I their inner width, E
language model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.projector import Projector
from encoder_bench.mllm.projectors.resampler import CrossAttention, feed_forward

_DEFAULT_QUERIES = 32


class QFormer(Projector):
    """`visual_tokens` (32) queries through `depth` blocks, `heads * head_width` wide.

    Each block is self-attention among the queries, cross-attention to the patch tokens, and a
    feed-forward network, with BERT's normalisation after each residual.

    Reference: Li et al. 2023, BLIP-2 (arXiv 2301.12597). Deviations: no text input, no
    initialisation from BERT, cross-attention in every block rather than in every second one.
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        self.visual_tokens = settings.visual_tokens or _DEFAULT_QUERIES
        inner = settings.heads * settings.head_width
        self.queries = nn.Parameter(torch.empty(self.visual_tokens, inner))
        nn.init.normal_(self.queries, std=0.02)
        self.norm = nn.LayerNorm(inner)
        self.blocks = nn.ModuleList(_Block(settings, width) for _ in range(settings.depth))
        self.to_llm = nn.Linear(inner, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        queries_BMI = self.norm(self.queries).expand(len(features), -1, -1)
        for block in self.blocks:
            queries_BMI = block(queries_BMI, features)
        projected: Tensor = self.to_llm(queries_BMI)
        return projected


class _Block(nn.Module):
    def __init__(self, settings: ProjectorSettings, width: int) -> None:
        super().__init__()
        heads, head_width = settings.heads, settings.head_width
        inner = heads * head_width
        self.self_attention = CrossAttention(
            inner, inner, heads=heads, head_width=head_width, bias=True
        )
        self.cross_attention = CrossAttention(
            inner, width, heads=heads, head_width=head_width, bias=True
        )
        self.feed_forward = feed_forward(inner, bias=True)
        self.norms = nn.ModuleList(nn.LayerNorm(inner) for _ in range(3))

    def forward(self, queries_BMI: Tensor, features_BND: Tensor) -> Tensor:
        queries_BMI = self.norms[0](queries_BMI + self.self_attention(queries_BMI, queries_BMI))
        queries_BMI = self.norms[1](queries_BMI + self.cross_attention(queries_BMI, features_BND))
        output_BMI: Tensor = self.norms[2](queries_BMI + self.feed_forward(queries_BMI))
        return output_BMI
