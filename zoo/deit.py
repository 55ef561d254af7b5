"""DeiT: fully supervised classification with a distillation token.

Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention",
equation 3 (hard distillation): the class token learns the label, the distillation token learns the
decision of a convolutional teacher, half of the loss each. Scenes hold several objects, so that an
image has several classes: each class is its own binary decision, as in DeiT III (Touvron et al.
2022, section 3), and the smoothed cross-entropy is the binary one. The teacher is trained on the
same images and labels in the same run, one step ahead; the paper's is trained before.

Axes: B images, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.objective import Objective, ObjectiveLoss, PretrainingBatch
from zoo.views import SHIFTS, normalise, shift_and_jitter


def smoothed_labels(labels: Tensor, smoothing: float) -> Tensor:
    """Return 0/1 labels less `smoothing`, which all C classes share: `y * (1 - s) + s / C`.

    Args:
        labels: `(B, C)` 0 or 1.
        smoothing: the share that is taken from a class that is there.
    """
    return labels * (1.0 - smoothing) + smoothing / labels.shape[-1]


def hard_distillation_loss(
    class_logits: Tensor,
    distillation_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    smoothing: float,
) -> Tensor:
    """Return half the label's cross-entropy plus half that of the teacher's hard decision.

    Args:
        class_logits: `(B, C)` from the class token.
        distillation_logits: `(B, C)` from the distillation token.
        teacher_logits: `(B, C)`; only their sign counts, no gradient flows.
        labels: `(B, C)` 0 or 1.
        smoothing: label smoothing of the first half.

    Returns:
        The scalar mean over images and classes, in nats.
    """
    decision = (teacher_logits.detach() > 0).to(labels.dtype)
    supervised = F.binary_cross_entropy_with_logits(
        class_logits, smoothed_labels(labels, smoothing)
    )
    distilled = F.binary_cross_entropy_with_logits(distillation_logits, decision)
    return 0.5 * supervised + 0.5 * distilled


class ConvolutionalTeacher(nn.Module):
    """Four convolutions, three of them strided, their strongest and mean response, a linear layer.

    The strongest response anywhere says that a thing is there, the mean how many there are.
    """

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, stride in enumerate((2, 2, 2, 1)):
            out = width * 2 ** min(stage, 2)
            layers += [
                nn.Conv2d(channels, out, kernel_size=3, stride=stride, padding=1, bias=False),
                nn.GroupNorm(8, out),
                nn.ReLU(),
            ]
            channels = out
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, C)` logits of `(B, 3, H, W)` pixels."""
        response = self.layers(pixels)
        pooled = torch.cat([response.amax(dim=(2, 3)), response.mean(dim=(2, 3))], dim=-1)
        logits: Tensor = self.head(pooled)
        return logits


class DeitObjective(Objective):
    """DeiT's hard distillation on the classes of an image, each its own binary decision.

    The class token learns the smoothed labels, the distillation token the decisions of a small
    convolutional teacher that is trained beside it on the same batches (the paper's is trained
    before).
    """

    augmentation = SHIFTS

    def __init__(self, encoder: Any, *, classes: int, smoothing: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.class_head = nn.Linear(width, classes)
        self.distillation_head = nn.Linear(width, classes)
        self.teacher = ConvolutionalTeacher(classes)
        self.smoothing = smoothing

    def forward(self, batch: PretrainingBatch, generator: torch.Generator) -> ObjectiveLoss:
        """Return the distilled loss plus the teacher's own."""
        pixels = normalise(shift_and_jitter(batch.images, generator))
        tokens = self.encoder(pixels).last_hidden_state
        teacher_logits = self.teacher(pixels).float()
        student = hard_distillation_loss(
            self.class_head(tokens[:, 0]).float(),
            self.distillation_head(tokens[:, 1]).float(),
            teacher_logits,
            batch.labels,
            smoothing=self.smoothing,
        )
        teacher = F.binary_cross_entropy_with_logits(teacher_logits, batch.labels)
        terms = {"student": student.item(), "teacher": teacher.item()}
        return ObjectiveLoss(student + teacher, tokens[:, 0].detach().float(), terms)
