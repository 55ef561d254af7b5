"""DeiT: fully supervised classification, each class its own binary decision.

Touvron et al. 2022, "DeiT III: Revenge of the ViT", section 3: a plain ViT whose class token learns
every label by a binary cross-entropy, without the distillation token and the convolutional teacher
of the first DeiT. That suits scenes, which hold several things, so that an image has several
classes.

Axes: B images, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zoo.objective import Objective, ObjectiveLoss, PretrainingBatch
from zoo.views import SHIFTS, normalise, shift_and_jitter


class DeitObjective(Objective):
    """DeiT III's binary cross-entropy on the classes of an image, read from the class token."""

    augmentation = SHIFTS

    def __init__(self, encoder: Any, *, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)
        nn.init.constant_(self.head.bias, -2.0)  # most classes are absent from an image

    def forward(self, batch: PretrainingBatch, generator: torch.Generator) -> ObjectiveLoss:
        """Return the mean cross-entropy over images and classes, in nats."""
        pixels = normalise(shift_and_jitter(batch.images, generator))
        token = self.encoder(pixels).last_hidden_state[:, 0]
        loss = F.binary_cross_entropy_with_logits(self.head(token).float(), batch.labels)
        return ObjectiveLoss(loss, token.detach().float())
