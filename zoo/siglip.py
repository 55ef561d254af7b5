"""SigLIP: every image-caption pair of the batch is its own binary decision.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", equation 1 and algorithm 1:
`-1/B * sum log sigmoid(z_ij * (t * x_i . y_j + b))` with z = 1 on the diagonal and -1 elsewhere;
t is learned as its logarithm and begins at 10. b begins near the prior of one match in B, so that
training does not start with a large correction: the paper's -10 is about -log of its batch of
32,768, here it is -log(B - 1) of the batch at hand.

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

INITIAL_LOG_SCALE = math.log(10.0)


def pairwise_sigmoid_loss(
    images: Tensor, captions: Tensor, log_scale: Tensor, bias: Tensor
) -> Tensor:
    """Return the sigmoid loss summed over pairs and divided by the images.

    Args:
        images: `(B, E)` unit vectors.
        captions: `(B, E)` unit vectors; row i belongs to image i.
        log_scale: scalar logarithm of the inverse temperature.
        bias: scalar added to every logit.

    Returns:
        The scalar loss in nats per image.
    """
    logits = log_scale.exp() * images @ captions.T + bias
    sign = 2.0 * torch.eye(len(logits), device=logits.device) - 1.0
    return -F.logsigmoid(sign * logits).sum() / len(logits)


class SiglipObjective(Objective):
    """SigLIP with a small text tower that is dropped after pretraining."""

    augmentation = SHIFTS

    def __init__(self, encoder: Any, text_tower: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.text_tower = text_tower
        self.log_scale = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE))
        self.bias = nn.Parameter(torch.tensor(0.0))
        """Added to -log(B - 1)."""

    def forward(self, batch: PretrainingBatch, generator: torch.Generator) -> ObjectiveLoss:
        """Return the sigmoid loss of the images and their captions."""
        pixels = normalise(shift_and_jitter(batch.images, generator))
        images = F.normalize(self.encoder(pixels).pooler_output.float(), dim=-1)
        captions = F.normalize(self.text_tower(batch.captions).pooler_output.float(), dim=-1)
        bias = self.bias - math.log(max(1, len(images) - 1))
        loss = pairwise_sigmoid_loss(images, captions, self.log_scale, bias)
        terms = {"temperature": math.exp(-self.log_scale.item()), "bias": bias.item()}
        return ObjectiveLoss(loss, images.detach(), terms)
