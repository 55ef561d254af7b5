"""Perceiver resampler: learned latents that read the patch tokens (GVT's projector)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.attention import CrossAttention, feed_forward
from encoder_bench.mllm.projectors.projector import Projector

_DEFAULT_LATENTS = 32


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
        """Build the layers."""
        super().__init__(settings, grid=grid, width=width, llm_width=llm_width)
        count = settings.visual_tokens or _DEFAULT_LATENTS
        self.latents = nn.Parameter(torch.randn(count, width))
        self.layers = nn.ModuleList(_ResamplerLayer(settings, width) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width)
        self.to_llm = nn.Linear(width, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, D_llm)`."""
        latents = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(latents, features)
        projected: Tensor = self.to_llm(self.norm(latents))
        return projected

    def num_tokens(self, patch_tokens: int) -> int:
        """Return the number of latents, whatever the grid."""
        return len(self.latents)


class _ResamplerLayer(nn.Module):
    def __init__(self, settings: ProjectorSettings, width: int) -> None:
        super().__init__()
        self.norm_features = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.attention = CrossAttention(
            width, width, heads=settings.heads, head_width=settings.head_width, bias=False
        )
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), *feed_forward(width, bias=False))

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        queries = self.norm_latents(latents)
        keys = torch.cat([self.norm_features(features), queries], dim=1)
        latents = latents + self.attention(queries, keys)
        output: Tensor = latents + self.feed_forward(latents)
        return output
