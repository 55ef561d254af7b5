"""The budget that every objective gets: steps, images, optimizer and learning rate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Budget:
    """What is spent on one pretraining run, the same for every objective.

    Attributes:
        steps: optimizer steps.
        images_per_step: images of a step; several views of an image count as one image seen.
        learning_rate: peak of AdamW's, reached after the warm-up, then a cosine to 0.
        weight_decay: AdamW's, on matrices only.
        warmup_fraction: share of the steps in which the learning rate rises linearly.
        clip_norm: largest norm of the gradient.
        betas: AdamW's.
    """

    steps: int
    images_per_step: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1
    clip_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)

    @property
    def images_seen(self) -> int:
        """Images seen in all, repeats counted."""
        return self.steps * self.images_per_step

    def as_json(self) -> dict[str, Any]:
        """Return every field, and the images seen, for the card."""
        return {**asdict(self), "betas": list(self.betas), "images_seen": self.images_seen}

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then a cosine to 0.

        >>> budget = Budget(steps=100, learning_rate=1.0)
        >>> budget.learning_rate_at(4), budget.learning_rate_at(9), budget.learning_rate_at(55)
        (0.5, 1.0, 0.5)
        """
        warmup = max(1, round(self.warmup_fraction * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * round(0.5 * (1.0 + math.cos(math.pi * progress)), 12)


def with_changes(
    budget: Budget, *, steps: int | None = None, images_per_step: int | None = None
) -> Budget:
    """Return the budget with what is given in place of its own.

    >>> with_changes(Budget(steps=100), images_per_step=8).images_seen
    800
    """
    return replace(
        budget,
        steps=budget.steps if steps is None else steps,
        images_per_step=budget.images_per_step if images_per_step is None else images_per_step,
    )


def make_optimizer(module: nn.Module, budget: Budget) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; vectors and scalars do not decay."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": budget.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=budget.learning_rate, betas=budget.betas)
