"""CLIP: image and caption must find each other in the batch (softmax both ways).

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
figure 3: symmetric cross-entropy over scaled cosine similarities (InfoNCE), the temperature
learned as its logarithm, initialised to 1/0.07 and kept below 100.

Axes: B images and captions, E joint embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.objective import Objective, ObjectiveLoss, PretrainingBatch
from zoo.views import SHIFTS, normalise, shift_and_jitter

INITIAL_LOG_SCALE = math.log(1 / 0.07)
MAX_LOG_SCALE = math.log(100.0)


def symmetric_info_nce(images: Tensor, captions: Tensor, log_scale: Tensor) -> Tensor:
    """Return the mean of image-to-caption and caption-to-image cross-entropy.

    Args:
        images: `(B, E)` unit vectors.
        captions: `(B, E)` unit vectors; row i belongs to image i.
        log_scale: scalar logarithm of the inverse temperature.

    Returns:
        The scalar loss in nats.
    """
    logits = log_scale.exp() * images @ captions.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class ClipObjective(Objective):
    """CLIP with a small text tower that is dropped after pretraining."""

    augmentation = SHIFTS

    def __init__(self, encoder: Any, text_tower: Any, *, embedding: int = 128) -> None:
        super().__init__()
        self.encoder = encoder
        self.text_tower = text_tower
        self.image_projection = nn.Linear(encoder.config.hidden_size, embedding, bias=False)
        self.text_projection = nn.Linear(text_tower.config.hidden_size, embedding, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE))

    def forward(self, batch: PretrainingBatch, generator: torch.Generator) -> ObjectiveLoss:
        """Return the contrastive loss of the images and their captions."""
        pixels = normalise(shift_and_jitter(batch.images, generator))
        pooled = self.encoder(pixels).pooler_output
        read = self.text_tower(batch.captions, attention_mask=(batch.captions != 0).long())
        images = F.normalize(self.image_projection(pooled).float(), dim=-1)
        captions = F.normalize(self.text_projection(read.pooler_output).float(), dim=-1)
        loss = symmetric_info_nce(images, captions, self.log_scale)
        terms = {"temperature": math.exp(-self.log_scale.item())}
        return ObjectiveLoss(loss, images.detach(), terms)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Keep the inverse temperature below 100."""
        self.log_scale.clamp_(max=MAX_LOG_SCALE)
