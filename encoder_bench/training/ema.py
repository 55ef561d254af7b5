"""An exponential moving average of the trained weights, off unless a recipe asks for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from encoder_bench.training.sharding import cut_like


class MovingAverage:
    """Follows tensors: average = decay * average + (1 - decay) * value after every step.

    Reference: Polyak and Juditsky 1992, in the exponential form that is common in vision.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        """Begin at the tensors' present values.

        Args:
            tensors: what is followed, by name; updated in place by the optimizer.
            decay: from 0 (the last value) to 1 (the first).
        """
        self._live = {name: t for name, t in tensors.items() if t.is_floating_point()}
        self._decay = decay
        self.state = {name: tensor.clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take up the present values."""
        for name, average in self.state.items():
            average.lerp_(self._live[name], 1.0 - self._decay)

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved `state`."""
        for name, average in self.state.items():
            average.copy_(cut_like(state[name], average))

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the followed values by their averages."""
        for name, average in self.state.items():
            self._live[name].copy_(average)
