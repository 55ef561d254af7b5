"""The contract of a projector, and the arithmetic on patch grids that several share.

Axes: B images, N patch tokens on a grid (h, w), D encoder width, M visual tokens, E LLM width,
V vocabulary.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.base.errors import RecipeError
from encoder_bench.base.recipes import ProjectorSettings

_MAX_STRETCH = 2.0 + 1e-9


class Projector(nn.Module, ABC):
    """Turns patch tokens `(B, N, D)` into visual tokens `(B, M, E)`.

    Attributes:
        grid: (h, w) of the patch tokens that it takes, D `width` and E `llm_width`.
        visual_tokens: M; subclasses set it.
        target: (h, w) of the visual tokens, where they are on a grid.
    """

    visual_tokens: int
    target: tuple[int, int]

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        super().__init__()
        self.settings, self.grid = settings, grid
        self.width, self.llm_width = width, llm_width
        self.build()

    def build(self) -> None:
        """Make the layers and set `visual_tokens`, from the attributes."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)` visual tokens of `(B, N, D)` patch tokens, row-major."""

    def start_from(self, embeddings: Tensor) -> None:
        """Set what depends on the language model's input embeddings `(V, E)`, before training."""

    @property
    def patches(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    def set_target(self, *, default: int) -> None:
        """Set `visual_tokens`, the recipe's or `default`, and the `target` grid of so many."""
        self.visual_tokens = self.settings.visual_tokens or default
        self.target = grid_of(self.visual_tokens, self.grid)

    def to_map(self, tokens_BND: Tensor) -> Tensor:
        """Return `(B, D, h, w)` of row-major `(B, N, D)`."""
        if tokens_BND.shape[1] != self.patches:
            raise ValueError(f"{tokens_BND.shape[1]} patch tokens are no grid of {self.grid}")
        return tokens_BND.transpose(1, 2).reshape(len(tokens_BND), -1, *self.grid)

    def pooled(self, tokens_BND: Tensor) -> Tensor:
        """Average `(B, N, D)` on `grid` down (or up) to `target`: `(B, M, D)`."""
        if self.grid == self.target:
            return tokens_BND
        return to_tokens(average_pool(self.to_map(tokens_BND), self.target))


def average_pool(map_BDHW: Tensor, target: tuple[int, int]) -> Tensor:
    """Return `(B, D, h, w)` averages of `(B, D, H, W)`, as `F.adaptive_avg_pool2d` defines them.

    Apple's MPS has that function only where one size divides the other (PyTorch issue 96056), so
    that elsewhere than on CPU and CUDA the averages are matrix products.
    """
    if map_BDHW.device.type in ("cpu", "cuda"):
        return F.adaptive_avg_pool2d(map_BDHW, target)
    return average_by_products(map_BDHW, target)


def average_by_products(map_BDHW: Tensor, target: tuple[int, int]) -> Tensor:
    """Return what `average_pool` does, by a matrix of weights for rows and one for columns."""
    rows_Hh, columns_Ww = (
        F.adaptive_avg_pool1d(torch.eye(size), wanted).to(map_BDHW)
        for size, wanted in zip(map_BDHW.shape[-2:], target, strict=True)
    )
    with torch.autocast(map_BDHW.device.type, enabled=False):
        return rows_Hh.T @ map_BDHW @ columns_Ww


def to_tokens(map_BDhw: Tensor) -> Tensor:
    """Return row-major `(B, h * w, D)` of `(B, D, h, w)`."""
    return map_BDhw.flatten(2).transpose(1, 2)


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
