"""The contract of a pretraining objective: a batch of images in, a loss to descend out.

Axes: B images, H and W pixels, C classes, L text tokens.
"""

from __future__ import annotations

import copy
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
        encoder: the family's own transformers model; what ships is `shipped()`.
        augmentation: one line on how images are augmented, for the card.
        learning_rate: the peak that suits it; steps and images are the budget's.
    """

    encoder: Any
    augmentation: str
    learning_rate = 1e-3

    @abstractmethod
    def forward(self, batch: PretrainingBatch, generator: torch.Generator) -> ObjectiveLoss:
        """Return the loss on a batch; `generator` is the only source of randomness."""

    def after_step(self, progress: float) -> None:
        """Update what is not trained by gradient; `progress` runs from 0 to 1."""

    def shipped(self) -> Any:
        """Return the transformers model whose weights ship."""
        return self.encoder


class SelfDistillation(Objective):
    """A student and its moving average, the teacher: what DINO and DINOv2 have in common.

    Both teachers move faster and are sharper than the papers', whose runs are a hundred times as
    long: at a temperature that rises from 0.04 to 0.07 and a momentum of 0.996 the image losses
    stood within 10% of a uniform guess. The prototypes stand still in the first 5% of the steps.

    Attributes:
        teacher_temperature: divides the teacher's logits.
        teacher_momentum: at the start; it rises to 1 by a cosine.
    """

    learning_rate = 2e-3
    student_temperature = 0.1
    teacher_temperature = 0.04
    teacher_momentum = 0.99
    progress: Tensor

    def __init__(self, **students: nn.Module) -> None:
        super().__init__()
        self.students = nn.ModuleDict(students)
        self.teachers = copy.deepcopy(self.students).requires_grad_(False).eval()
        self.register_buffer("progress", torch.zeros(()))

    @property
    def encoder(self) -> Any:
        """The student's encoder."""
        return self.students["encoder"]

    @property
    def prototypes_stand(self) -> bool:
        """Whether the prototypes are not trained yet."""
        return float(self.progress) < 0.05

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student."""
        self.progress.fill_(progress)
        keep = rising_momentum(self.teacher_momentum, progress)
        pairs = zip(self.teachers.parameters(), self.students.parameters(), strict=True)
        for old, new in pairs:
            old.lerp_(new, 1.0 - keep)

    def shipped(self) -> Any:
        """Return the teacher, which the papers evaluate."""
        return self.teachers["encoder"]


def rising_momentum(start: float, progress: float) -> float:
    """Return the teacher's momentum: from `start` at progress 0 to 1 at progress 1 by a cosine.

    >>> rising_momentum(0.9, 0.0), round(rising_momentum(0.9, 0.5), 3), rising_momentum(0.9, 1.0)
    (0.9, 0.95, 1.0)
    """
    return 1.0 - (1.0 - start) * (math.cos(math.pi * progress) + 1.0) / 2.0
