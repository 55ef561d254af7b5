"""The contract of a projector, and the arithmetic on patch grids that several share.

Axes: B images, N patch tokens on a grid (h, w), D encoder width, M visual tokens, E LLM width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.base.errors import RecipeError
from encoder_bench.base.recipes import ProjectorSettings

POOLED_TOKENS = 64
"""M of the projectors that always pool, where the recipe does not set it and N is not less."""
_MAX_STRETCH = 2.0 + 1e-9


class Projector(nn.Module, ABC):
    """Turns patch tokens `(B, N, D)` into visual tokens `(B, M, E)`.

    Attributes:
        settings: the recipe's `[projector]`.
        grid: (h, w) of the patch tokens that it takes.
        width: D.
        llm_width: E.
        visual_tokens: M; subclasses set it.
    """

    visual_tokens: int

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        super().__init__()
        self.settings = settings
        self.grid = grid
        self.width = width
        self.llm_width = llm_width

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)` visual tokens of `(B, N, D)` patch tokens, row-major."""

    def num_tokens(self, patch_tokens: int) -> int:
        """Return M for N `patch_tokens`."""
        return self.visual_tokens


def grid_of(tokens: int, like: tuple[int, int]) -> tuple[int, int]:
    """Return the (h, w) with h * w = `tokens` whose shape is nearest to that of `like`.

    >>> grid_of(64, (16, 16)), grid_of(32, (16, 16)), grid_of(8, (8, 16))
    ((8, 8), (4, 8), (2, 4))

    Raises:
        RecipeError: every such grid is more than twice as stretched as `like` (17 on a square).
    """
    stretch, best = _nearest_grid(tokens, like)
    if stretch > _MAX_STRETCH:
        near = range(max(1, tokens - 8), tokens + 9)
        choices = ", ".join(str(n) for n in near if _nearest_grid(n, like)[0] <= _MAX_STRETCH)
        raise RecipeError(
            f"projector.visual_tokens {tokens}: no grid of so many tokens is near the encoder's "
            f"{like[0]}x{like[1]}; near it are {choices}"
        )
    return best


def _nearest_grid(tokens: int, like: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Return how stretched the nearest grid of so many tokens is (1: not at all), and the grid."""
    aspect = like[1] / like[0]
    grids = [(h, tokens // h) for h in range(1, tokens + 1) if tokens % h == 0]
    ratios = [(w / h / aspect, (h, w)) for h, w in grids]
    return min((max(ratio, 1 / ratio), grid) for ratio, grid in ratios)


def to_map(tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return `(B, D, h, w)` of row-major `(B, N, D)`."""
    if tokens_BND.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"{tokens_BND.shape[1]} patch tokens do not fill a grid of {grid}")
    return tokens_BND.transpose(1, 2).reshape(len(tokens_BND), tokens_BND.shape[2], *grid)


def to_tokens(map_BDhw: Tensor) -> Tensor:
    """Return row-major `(B, h * w, D)` of `(B, D, h, w)`."""
    return map_BDhw.flatten(2).transpose(1, 2)


def pool_to(tokens_BND: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Average `(B, N, D)` on `grid` down (or up) to `target`: `(B, target h * w, D)`."""
    if grid == target:
        return tokens_BND
    return to_tokens(F.adaptive_avg_pool2d(to_map(tokens_BND, grid), target))
