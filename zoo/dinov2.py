"""DINOv2: DINO between crops, iBOT between patches, features spread apart.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", section 4: the
image loss of DINO and the masked patch loss of iBOT (Zhou et al. 2022), each with its own head and
with targets centred by Sinkhorn-Knopp (Caron et al. 2020, three iterations), and the KoLeo
regulariser (Sablayrolles et al. 2019) with weight 0.1 on the class tokens of the global crops.

Axes: B images, N patches, M masked patches, K prototypes, D width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.dino import PrototypeHead, cross_view_loss, entropy
from zoo.objective import (
    Objective,
    ObjectiveLoss,
    PretrainingBatch,
    rising_momentum,
    update_teacher,
)
from zoo.views import CROPS, global_and_local_crops, normalise

COLOUR_CAST = 0.15


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Return `(B, K)` distributions whose mass is spread evenly over the prototypes.

    Rows sum to 1 exactly, columns to B / K as nearly as the iterations reach.
    """
    scaled = logits.float() / temperature
    mass = (scaled - scaled.max()).exp()
    mass = mass / mass.sum()
    samples, prototypes = mass.shape
    for _ in range(iterations):
        mass = mass / mass.sum(dim=0, keepdim=True).clamp_min(1e-12) / prototypes
        mass = mass / mass.sum(dim=1, keepdim=True).clamp_min(1e-12) / samples
    return mass * samples


def masked_patch_cross_entropy(
    teacher: Tensor, student: Tensor, mask: Tensor, student_temperature: float
) -> Tensor:
    """Return iBOT's cross-entropy on masked patches, each image's masked patches weighing 1.

    Args:
        teacher: distributions `(M, K)` of the masked patches, in the order of `mask`.
        student: logits `(M, K)`.
        mask: `(B, N)` True where masked, M in all; images without a masked patch are skipped.
        student_temperature: divides the student's logits.

    Returns:
        The scalar mean over images that have masked patches, in nats.
    """
    per_patch = -(teacher * F.log_softmax(student / student_temperature, dim=-1)).sum(dim=-1)
    masked = mask.sum(dim=1)
    weight = (1.0 / masked.clamp_min(1)).repeat_interleave(masked)
    loss: Tensor = (per_patch * weight).sum() / (masked > 0).sum().clamp_min(1)
    return loss


def koleo_loss(features: Tensor) -> Tensor:
    """Return `-mean log(distance to the nearest other)` of `(B, D)` features on the unit sphere."""
    unit = F.normalize(features, dim=-1)
    similarity = (unit @ unit.T).fill_diagonal_(-2.0).detach()
    nearest = similarity.argmax(dim=1)
    distance = (unit - unit[nearest] + 1e-8).norm(dim=-1)
    loss: Tensor = -(distance + 1e-8).log().mean()
    return loss


def random_patch_mask(
    images: int, patches: int, generator: torch.Generator, *, share: float = 0.5
) -> Tensor:
    """Return `(images, patches)` True where masked: a `share` of the images, 10% to 50% of each."""
    chosen = torch.rand(images, generator=generator) < share
    chosen[0] = True
    ratio = 0.1 + 0.4 * torch.rand(images, generator=generator)
    rank = torch.rand(images, patches, generator=generator).argsort(dim=1).argsort(dim=1)
    return (rank < (ratio * patches).long().clamp_min(1)[:, None]) & chosen[:, None]


class Dinov2Objective(Objective):
    """DINOv2 with two global and two local crops."""

    augmentation = f"{CROPS}, colour cast {COLOUR_CAST}"
    student_temperature = 0.1
    teacher_temperature = 0.07
    initial_momentum = 0.99
    koleo_weight = 0.1

    def __init__(self, encoder: Any, *, prototypes: int = 512) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.head = PrototypeHead(width, prototypes)
        self.patch_head = PrototypeHead(width, prototypes)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.teacher_patch_head = copy.deepcopy(self.patch_head).requires_grad_(False)

    def forward(self, batch: PretrainingBatch, generator: torch.Generator) -> ObjectiveLoss:
        """Return image loss + patch loss + 0.1 KoLeo."""
        wide, narrow = global_and_local_crops(batch.images, generator, cast=COLOUR_CAST)
        wide, count = normalise(wide), len(batch.images)
        patches = (wide.shape[-1] // self.encoder.config.patch_size) ** 2
        mask = random_patch_mask(len(wide), patches, generator).to(wide.device)
        with torch.no_grad():
            output = self.teacher(wide).last_hidden_state
            targets = torch.cat(
                [
                    sinkhorn_knopp(logits, self.teacher_temperature)
                    for logits in torch.split(self.teacher_head(output[:, 0]), count)
                ]
            )
            patch_logits = self.teacher_patch_head(output[:, 1:][mask])
            patch_targets = sinkhorn_knopp(patch_logits, self.teacher_temperature)
        seen = self.encoder(wide, bool_masked_pos=mask).last_hidden_state
        seen_narrow = self.encoder(normalise(narrow)).last_hidden_state[:, 0]
        student = self.head(torch.cat([seen[:, 0], seen_narrow]))
        image_loss = cross_view_loss(
            torch.split(targets, count), torch.split(student, count), self.student_temperature
        )
        patch_loss = masked_patch_cross_entropy(
            patch_targets, self.patch_head(seen[:, 1:][mask]), mask, self.student_temperature
        )
        koleo = torch.stack([koleo_loss(c.float()) for c in torch.split(seen[:, 0], count)]).mean()
        terms = {
            "image": image_loss.item(),
            "patch": patch_loss.item(),
            "koleo": koleo.item(),
            "teacher_entropy": entropy(targets),
        }
        total = image_loss + patch_loss + self.koleo_weight * koleo
        return ObjectiveLoss(total, output[:count, 0].float(), terms)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student."""
        momentum = rising_momentum(self.initial_momentum, progress)
        update_teacher(self.teacher, self.encoder, momentum)
        update_teacher(self.teacher_head, self.head, momentum)
        update_teacher(self.teacher_patch_head, self.patch_head, momentum)

    def shipped(self) -> Any:
        """Return the teacher, which the paper evaluates."""
        return self.teacher
