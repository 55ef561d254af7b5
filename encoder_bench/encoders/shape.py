"""The shape of an encoder's patch tokens, found without computing them.

The forward pass runs on the meta device, where nothing is calculated; a backbone that cannot do so
(a tensor of its own kept outside its buffers) is run once for real.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn

TokensAndGrid = tuple[Tensor, tuple[int, int]]


def token_shape(
    backbone: nn.Module, tokens: Callable[[Tensor], TokensAndGrid], resolution: tuple[int, int]
) -> tuple[int, tuple[int, int]]:
    """Return the width of a backbone's patch tokens and their grid, rows first.

    Args:
        backbone: the module that `tokens` runs.
        tokens: from `(1, 3, H, W)` pixels to `(1, N, D)` patch tokens and their grid.
        resolution: H and W, pixels.

    Raises:
        RuntimeError: the forward pass fails, as the backbone's own error tells.
    """
    first = next(backbone.parameters())
    state = {
        name: tensor.to("meta")
        for name, tensor in chain(backbone.named_parameters(), backbone.named_buffers())
    }
    runner = _Runner(backbone, tokens)
    with torch.no_grad():
        pixels = torch.zeros(1, 3, *resolution, dtype=first.dtype, device="meta")
        try:
            output, grid = torch.func.functional_call(
                runner, {f"backbone.{name}": tensor for name, tensor in state.items()}, (pixels,)
            )
        except (RuntimeError, NotImplementedError):
            output, grid = tokens(torch.zeros_like(pixels, device=first.device))
    return int(output.shape[-1]), grid


class _Runner(nn.Module):
    """A module whose forward is `tokens`, so that its parameters can be replaced for one call."""

    def __init__(self, backbone: nn.Module, tokens: Callable[[Tensor], TokensAndGrid]) -> None:
        super().__init__()
        self.backbone = backbone
        self._tokens = tokens

    def forward(self, pixels: Tensor) -> TokensAndGrid:
        return self._tokens(pixels)
