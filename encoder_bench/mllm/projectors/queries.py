"""Projectors whose learned queries read the patch tokens: the Perceiver resampler and the Q-Former.

Axes: B images, N patch tokens, D encoder width, M visual tokens (queries), I their inner width,
E LLM width; in attention Q queries, K keys, H heads of C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.mllm.projectors.projector import Projector

_DEFAULT_QUERIES = 32


class CrossAttention(nn.Module):
    """Multi-head attention in which queries of one width read keys and values of another.

    The output has the queries' width.
    """

    def __init__(
        self, settings: ProjectorSettings, query_width: int, key_width: int, *, bias: bool
    ) -> None:
        super().__init__()
        inner = settings.heads * settings.head_width
        self.heads = settings.heads
        self.to_query = nn.Linear(query_width, inner, bias=bias)
        self.to_key = nn.Linear(key_width, inner, bias=bias)
        self.to_value = nn.Linear(key_width, inner, bias=bias)
        self.to_output = nn.Linear(inner, query_width, bias=bias)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return `(B, Q, query width)` of queries of that shape and keys `(B, K, key width)`."""
        parts = (self.to_query(queries), self.to_key(keys), self.to_value(keys))
        parts_BHLC = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        read_BHQC = F.scaled_dot_product_attention(*parts_BHLC)
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
    with the latents. GVT's has depth 6, 16 heads of 96 and 32 latents.

    Reference: Alayrac et al. 2022, Flamingo (arXiv 2204.14198), as used by Wang et al. 2023, GVT
    (arXiv 2305.12223). As there, normalisation comes first and attention has no bias.
    """

    def build(self) -> None:
        """Make latents and layers, as wide as the encoder."""
        settings, width = self.settings, self.width
        self.visual_tokens = settings.visual_tokens or _DEFAULT_QUERIES
        self.latents = nn.Parameter(torch.randn(self.visual_tokens, width))
        self.layers = nn.ModuleList(_ResamplerLayer(settings, width) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width)
        self.to_llm = nn.Linear(width, self.llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        latents_BMD = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents_BMD = layer(latents_BMD, features)
        projected: Tensor = self.to_llm(self.norm(latents_BMD))
        return projected


class _ResamplerLayer(nn.Module):
    def __init__(self, settings: ProjectorSettings, width: int) -> None:
        super().__init__()
        self.norm_features = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.attention = CrossAttention(settings, width, width, bias=False)
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), *feed_forward(width, bias=False))

    def forward(self, latents_BMD: Tensor, features_BND: Tensor) -> Tensor:
        queries_BMD = self.norm_latents(latents_BMD)
        keys_BKD = torch.cat([self.norm_features(features_BND), queries_BMD], dim=1)
        latents_BMD = latents_BMD + self.attention(queries_BMD, keys_BKD)
        output_BMD: Tensor = latents_BMD + self.feed_forward(latents_BMD)
        return output_BMD


class QFormer(Projector):
    """`visual_tokens` (32) queries through `depth` blocks, `heads * head_width` wide.

    Each block is self-attention among the queries, cross-attention to the patch tokens, and a
    feed-forward network, with BERT's normalisation after each residual.

    Reference: Li et al. 2023, BLIP-2 (arXiv 2301.12597). Deviations: no text input, no
    initialisation from BERT, cross-attention in every block rather than in every second one.
    """

    def build(self) -> None:
        """Make queries and blocks."""
        settings = self.settings
        self.visual_tokens = settings.visual_tokens or _DEFAULT_QUERIES
        inner = settings.heads * settings.head_width
        self.queries = nn.Parameter(torch.empty(self.visual_tokens, inner))
        nn.init.normal_(self.queries, std=0.02)
        self.norm = nn.LayerNorm(inner)
        self.blocks = nn.ModuleList(
            _QFormerBlock(settings, inner, self.width) for _ in range(settings.depth)
        )
        self.to_llm = nn.Linear(inner, self.llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        queries_BMI = self.norm(self.queries).expand(len(features), -1, -1)
        for block in self.blocks:
            queries_BMI = block(queries_BMI, features)
        projected: Tensor = self.to_llm(queries_BMI)
        return projected


class _QFormerBlock(nn.Module):
    def __init__(self, settings: ProjectorSettings, inner: int, width: int) -> None:
        super().__init__()
        self.self_attention = CrossAttention(settings, inner, inner, bias=True)
        self.cross_attention = CrossAttention(settings, inner, width, bias=True)
        self.feed_forward = feed_forward(inner, bias=True)
        self.norms = nn.ModuleList(nn.LayerNorm(inner) for _ in range(3))

    def forward(self, queries_BMI: Tensor, features_BND: Tensor) -> Tensor:
        queries_BMI = self.norms[0](queries_BMI + self.self_attention(queries_BMI, queries_BMI))
        queries_BMI = self.norms[1](queries_BMI + self.cross_attention(queries_BMI, features_BND))
        output_BMI: Tensor = self.norms[2](queries_BMI + self.feed_forward(queries_BMI))
        return output_BMI
