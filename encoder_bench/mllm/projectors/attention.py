"""Multi-head attention from one set of tokens to another, as resampler and Q-Former need it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttention(nn.Module):
    """Queries of one width read keys and values of another.

    Axes: Q queries, K keys, D_q and D_k their widths; inside, `heads * head_width`.
    """

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
        """Return `(B, Q, D_q)` of queries `(B, Q, D_q)` and keys `(B, K, D_k)`."""
        query, key, value = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project, tokens in (
                (self.to_query, queries),
                (self.to_key, keys),
                (self.to_value, keys),
            )
        )
        read = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.to_output(read.transpose(1, 2).flatten(2))
        return output


def feed_forward(width: int, *, bias: bool) -> nn.Sequential:
    """Return the transformer's two-layer GELU network, four times as wide inside."""
    return nn.Sequential(
        nn.Linear(width, 4 * width, bias=bias), nn.GELU(), nn.Linear(4 * width, width, bias=bias)
    )
