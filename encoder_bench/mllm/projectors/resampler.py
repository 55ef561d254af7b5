"""Perceiver resampler: learned latents that read the patch tokens (GVT's projector).

Axes: B images, N patch tokens, D encoder width, M visual tokens (latents), E LLM width; in
attention Q queries, K keys, H heads of C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.projector import Projector

_DEFAULT_LATENTS = 32


class CrossAttention(nn.Module):
    """Multi-head attention in which queries of one width read keys and values of another."""

    def __init__(
        self, query_width: int, key_width: int, *, heads: int, head_width: int, bias: bool
    ) -> None:
        """Build the four projections; the output has the queries' width."""
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.to_query = nn.Linear(query_width, inner, bias=bias)
        self.to_key = nn.Linear(key_width, inner, bias=bias)
        self.to_value = nn.Linear(key_width, inner, bias=bias)
        self.to_output = nn.Linear(inner, query_width, bias=bias)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return `(B, Q, query width)` of queries of that shape and keys `(B, K, key width)`."""
        query_BHQC, key_BHKC, value_BHKC = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project, tokens in (
                (self.to_query, queries),
                (self.to_key, keys),
                (self.to_value, keys),
            )
        )
        read_BHQC = F.scaled_dot_product_attention(query_BHQC, key_BHKC, value_BHKC)
        output: Tensor = self.to_output(read_BHQC.transpose(1, 2).flatten(2))
        return output


def feed_forward(width: int, *, bias: bool) -> nn.Sequential:
    """Return the transformer's two-layer GELU network, four times as wide inside."""
    return nn.Sequential(
        nn.Linear(width, 4 * width, bias=bias), nn.GELU(), nn.Linear(4 * width, width, bias=bias)
    )


class Resampler(Projector):
    """`visual_tokens` (32) latents through `depth` layers, then linear to the LLM's width.

    In each layer the latents are queries, and keys and values come from the patch tokens joined
    with the latents. GVT's has depth 6, 16 heads of 64 and 32 latents.

    Reference: Alayrac et al. 2022, Flamingo (arXiv 2204.14198), as used by Wang et al. 2023, GVT
    (arXiv 2305.12223). As there, normalisation comes first and attention has no bias.
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        self.visual_tokens = settings.visual_tokens or _DEFAULT_LATENTS
        self.latents = nn.Parameter(torch.randn(self.visual_tokens, width))
        self.layers = nn.ModuleList(_Layer(settings, width) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width)
        self.to_llm = nn.Linear(width, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        latents_BMD = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents_BMD = layer(latents_BMD, features)
        projected: Tensor = self.to_llm(self.norm(latents_BMD))
        return projected


class _Layer(nn.Module):
    def __init__(self, settings: ProjectorSettings, width: int) -> None:
        super().__init__()
        self.norm_features = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.attention = CrossAttention(
            width, width, heads=settings.heads, head_width=settings.head_width, bias=False
        )
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), *feed_forward(width, bias=False))

    def forward(self, latents_BMD: Tensor, features_BND: Tensor) -> Tensor:
        queries_BMD = self.norm_latents(latents_BMD)
        keys_BKD = torch.cat([self.norm_features(features_BND), queries_BMD], dim=1)
        latents_BMD = latents_BMD + self.attention(queries_BMD, keys_BKD)
        output_BMD: Tensor = latents_BMD + self.feed_forward(latents_BMD)
        return output_BMD
