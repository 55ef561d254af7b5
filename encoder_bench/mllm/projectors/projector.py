"""The contract that every projector meets.

What belongs here: the abstract contract. A projector is one class in one file of this folder,
with the constructor `(settings, *, grid, width, llm_width)`, and one line in `registry.py`.

Axes: B images, N patch tokens on a grid (h, w), D encoder width, M visual tokens, D_llm width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from encoder_bench.base.recipes import ProjectorSettings


class Projector(nn.Module, ABC):
    """Turns patch tokens `(B, N, D)` into visual tokens `(B, M, D_llm)`.

    Attributes:
        settings: the recipe's `[projector]`.
        grid: (h, w) of the patch tokens that it takes.
        width: D.
        llm_width: D_llm.
    """

    def __init__(
        self, settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
    ) -> None:
        """Keep the shapes; subclasses build their layers."""
        super().__init__()
        self.settings = settings
        self.grid = grid
        self.width = width
        self.llm_width = llm_width

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, D_llm)` visual tokens of `(B, N, D)` patch tokens, row-major."""

    @abstractmethod
    def num_tokens(self, patch_tokens: int) -> int:
        """Return M for N `patch_tokens`."""
