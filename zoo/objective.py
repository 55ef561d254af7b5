"""The contract of a pretraining objective: a batch of images in, a loss to descend out.

Axes: B images, H and W pixels, C classes, L text tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class PretrainingBatch:
    """Images with what is known about them; each objective takes what it needs.

    Attributes:
        images: `(B, 3, H, W)` floats in 0..1, as drawn.
        captions: `(B, L)` token ids of one caption per image, padded with 0.
        labels: `(B, C)` 0 or 1, the classes that are present.
    """

    images: Tensor
    captions: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> PretrainingBatch:
        """Return the batch on `device`."""
        return PretrainingBatch(
            self.images.to(device), self.captions.to(device), self.labels.to(device)
        )


@dataclass(frozen=True, slots=True)
class ObjectiveLoss:
    """A loss and what is watched for collapse.

    Attributes:
        total: the scalar that is descended, in nats or (MAE) squared normalised pixels.
        features: `(B, D)` detached image features, whose rank is watched.
        terms: named parts of the loss and entropies, detached, for the curve.
    """

    total: Tensor
    features: Tensor
    terms: dict[str, float] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """An encoder together with what its objective needs around it.

    Attributes:
        encoder: the family's own transformers model: the part that ships.
        augmentation: one line on how images are augmented, for the card.
    """

    encoder: Any
    augmentation: str

    @abstractmethod
    def forward(self, batch: PretrainingBatch, generator: torch.Generator) -> ObjectiveLoss:
        """Return the loss on a batch; `generator` is the only source of randomness."""

    def after_step(self, progress: float) -> None:
        """Update what is not trained by gradient; `progress` runs from 0 to 1."""

    def shipped(self) -> Any:
        """Return the transformers model whose weights ship."""
        return self.encoder


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Set every teacher weight to `momentum * teacher + (1 - momentum) * student`."""
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.lerp_(new, 1.0 - momentum)


def rising_momentum(start: float, progress: float) -> float:
    """Return the teacher's momentum: from `start` at progress 0 to 1 at progress 1 by a cosine.

    >>> rising_momentum(0.9, 0.0), round(rising_momentum(0.9, 0.5), 3), rising_momentum(0.9, 1.0)
    (0.9, 0.95, 1.0)
    """
    return 1.0 - (1.0 - start) * (math.cos(math.pi * progress) + 1.0) / 2.0
