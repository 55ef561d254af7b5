"""DINO: a student predicts, from any crop, what its own moving average says of the whole image.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", equations 1 to 4
and algorithm 1: cross-entropy between the teacher's centred and sharpened distribution on global
crops and the student's on every other crop; the centre is a moving average of the teacher's
outputs, the teacher a moving average of the student.

Axes: V views, B images, K prototypes, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.objective import ObjectiveLoss, PretrainingBatch, SelfDistillation
from zoo.views import CROPS, global_and_local_crops, normalise


def centred_and_sharpened(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Return the teacher's distribution `softmax((logits - centre) / temperature)`, no gradient."""
    return F.softmax((logits.detach() - centre) / temperature, dim=-1)


def cross_view_loss(
    teacher: Sequence[Tensor], student: Sequence[Tensor], student_temperature: float
) -> Tensor:
    """Return the mean cross-entropy over pairs of different views.

    Args:
        teacher: distributions `(B, K)`, one a global view.
        student: logits `(B, K)`, one a view, the global ones first and in the same order.
        student_temperature: divides the student's logits.

    Returns:
        The scalar mean over pairs and images, in nats.
    """
    logs = [F.log_softmax(logits / student_temperature, dim=-1) for logits in student]
    losses = [
        -(target * log).sum(dim=-1).mean()
        for t, target in enumerate(teacher)
        for s, log in enumerate(logs)
        if s != t
    ]
    return torch.stack(losses).mean()


def entropy(probabilities: Tensor) -> float:
    """Return the entropy in nats of the mean distribution of `(B, K)`: 0 and log K are collapses.

    >>> round(entropy(torch.full((2, 4), 0.25)), 4)
    1.3863
    """
    mean = probabilities.mean(dim=0)
    return float(-(mean * mean.clamp_min(1e-12).log()).sum())


class PrototypeHead(nn.Module):
    """The paper's head: an MLP, a unit-length bottleneck, prototypes of unit length."""

    def __init__(
        self, width: int, prototypes: int, hidden: int = 512, bottleneck: int = 64
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, tokens: Tensor, *, stand: bool = False) -> Tensor:
        """Return `(..., K)` cosines of `(..., D)` tokens; the prototypes `stand` untrained."""
        prototypes = self.prototypes.detach() if stand else self.prototypes
        unit = F.normalize(self.mlp(tokens).float(), dim=-1)
        with torch.autocast(tokens.device.type, enabled=False):  # cosines over 0.04 need all bits
            return F.linear(unit, F.normalize(prototypes, dim=-1))


class DinoObjective(SelfDistillation):
    """DINO with two global and two local crops and a centred, sharpened teacher."""

    augmentation = CROPS
    centre_momentum = 0.9
    centre: Tensor

    def __init__(self, encoder: Any, *, prototypes: int = 1024) -> None:
        super().__init__(
            encoder=encoder, head=PrototypeHead(encoder.config.hidden_size, prototypes)
        )
        self.register_buffer("centre", torch.zeros(prototypes))

    def forward(self, batch: PretrainingBatch, generator: torch.Generator) -> ObjectiveLoss:
        """Return the cross-view loss and move the centre."""
        wide, narrow = (normalise(v) for v in global_and_local_crops(batch.images, generator))
        count = len(batch.images)
        with torch.no_grad():
            output = self.teachers["encoder"](wide).last_hidden_state[:, 0]
            logits = self.teachers["head"](output)
            targets = centred_and_sharpened(logits, self.centre, self.teacher_temperature)
            self.centre.lerp_(logits.mean(dim=0), 1.0 - self.centre_momentum)
        encoder = self.encoder
        seen = [
            encoder(wide).last_hidden_state[:, 0],
            encoder(narrow, interpolate_pos_encoding=True).last_hidden_state[:, 0],
        ]
        student = self.students["head"](torch.cat(seen), stand=self.prototypes_stand)
        loss = cross_view_loss(
            torch.split(targets, count), torch.split(student, count), self.student_temperature
        )
        terms = {"teacher_entropy": entropy(targets)}
        return ObjectiveLoss(loss, output[:count].float(), terms)
