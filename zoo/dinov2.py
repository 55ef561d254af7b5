"""DINOv2: DINO between crops, iBOT between patches, features spread apart.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", section 4: the
image loss of DINO and the masked patch loss of iBOT (Zhou et al. 2022), each with its own head and
with targets centred by Sinkhorn-Knopp (Caron et al. 2020, three iterations), and the KoLeo
regulariser (Sablayrolles et al. 2019) with weight 0.1 on the class tokens of the global crops.

Axes: B images, N patches, M masked patches, K prototypes, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.dino import PrototypeHead, cross_view_loss, entropy
from zoo.objective import ObjectiveLoss, PretrainingBatch, SelfDistillation
from zoo.views import CROPS, global_and_local_crops, normalise


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


class Dinov2Objective(SelfDistillation):
    """DINOv2 with two global and two local crops."""

    augmentation = CROPS
    teacher_temperature = 0.03
    teacher_momentum = 0.98
    koleo_weight = 0.1

    def __init__(self, encoder: Any, *, prototypes: int = 256) -> None:
        width = encoder.config.hidden_size
        super().__init__(
            encoder=encoder,
            head=PrototypeHead(width, prototypes),
            patch_head=PrototypeHead(width, prototypes),
        )

    def forward(self, batch: PretrainingBatch, generator: torch.Generator) -> ObjectiveLoss:
        """Return image loss + patch loss + 0.1 KoLeo."""
        wide, narrow = (normalise(v) for v in global_and_local_crops(batch.images, generator))
        count, stand = len(batch.images), self.prototypes_stand
        encoder = self.encoder
        patches = (wide.shape[-1] // encoder.config.patch_size) ** 2
        mask = random_patch_mask(len(wide), patches, generator).to(wide.device)
        with torch.no_grad():
            output = self.teachers["encoder"](wide).last_hidden_state
            logits = self.teachers["head"](output[:, 0])
            targets = sinkhorn_knopp(logits, self.teacher_temperature)
            patch_logits = self.teachers["patch_head"](output[:, 1:][mask])
            patch_targets = sinkhorn_knopp(patch_logits, self.teacher_temperature)
        seen = encoder(wide, bool_masked_pos=mask).last_hidden_state
        tokens = torch.cat([seen[:, 0], encoder(narrow).last_hidden_state[:, 0]])
        student = self.students["head"](tokens, stand=stand)
        image_loss = cross_view_loss(
            torch.split(targets, count), torch.split(student, count), self.student_temperature
        )
        predicted = self.students["patch_head"](seen[:, 1:][mask], stand=stand)
        patch_loss = masked_patch_cross_entropy(
            patch_targets, predicted, mask, self.student_temperature
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
