"""DINO: a student predicts, from any crop, what its own moving average says of the whole image.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", equations 1 to 4
and algorithm 1: cross-entropy between the teacher's centred and sharpened distribution on global
crops and the student's on every other crop; the centre is a moving average of the teacher's
outputs, the teacher a moving average of the student.

Axes: V views, B images, K prototypes, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from zoo.objective import (
    Objective,
    ObjectiveLoss,
    PretrainingBatch,
    rising_momentum,
    update_teacher,
)
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
    """The paper's head: an MLP, a unit-length bottleneck, weight-normalised prototypes."""

    def __init__(
        self, width: int, prototypes: int, hidden: int = 256, bottleneck: int = 64
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = weight_norm(nn.Linear(bottleneck, prototypes, bias=False))
        lengths = self.prototypes.parametrizations.weight.original0
        lengths.data.fill_(1.0)
        lengths.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return `(..., K)` logits of `(..., D)` tokens."""
        logits: Tensor = self.prototypes(F.normalize(self.mlp(tokens), dim=-1))
        return logits.float()


class DinoObjective(Objective):
    """DINO with two global and two local crops.

    No colour cast: with one, the targets of this small model became uniform within 160 steps (the
    loss stood at log K), whether the teacher's temperature was 0.02, 0.03 or 0.04.
    """

    augmentation = CROPS
    student_temperature = 0.1
    teacher_temperature = 0.04
    centre_momentum = 0.9
    initial_momentum = 0.99
    centre: Tensor

    def __init__(self, encoder: Any, *, prototypes: int = 512) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = PrototypeHead(encoder.config.hidden_size, prototypes)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(prototypes))

    def forward(self, batch: PretrainingBatch, generator: torch.Generator) -> ObjectiveLoss:
        """Return the cross-view loss and move the centre."""
        wide, narrow = global_and_local_crops(batch.images, generator)
        count = len(batch.images)
        with torch.no_grad():
            output = self.teacher(normalise(wide)).last_hidden_state[:, 0]
            logits = self.teacher_head(output)
            targets = centred_and_sharpened(logits, self.centre, self.teacher_temperature)
            self.centre.lerp_(logits.mean(dim=0), 1.0 - self.centre_momentum)
        seen_wide = self.encoder(normalise(wide)).last_hidden_state[:, 0]
        seen_narrow = self.encoder(
            normalise(narrow), interpolate_pos_encoding=True
        ).last_hidden_state[:, 0]
        student = self.head(torch.cat([seen_wide, seen_narrow]))
        loss = cross_view_loss(
            torch.split(targets, count), torch.split(student, count), self.student_temperature
        )
        terms = {"teacher_entropy": entropy(targets)}
        return ObjectiveLoss(loss, output[:count].float(), terms)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student."""
        momentum = rising_momentum(self.initial_momentum, progress)
        update_teacher(self.teacher, self.encoder, momentum)
        update_teacher(self.teacher_head, self.head, momentum)

    def shipped(self) -> Any:
        """Return the teacher, which the paper evaluates."""
        return self.teacher
