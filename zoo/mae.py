"""MAE: draw the part of an image that was hidden.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3: most patches are
dropped, the encoder sees the others only, a light decoder fills in mask tokens, and the loss is
the mean squared error on hidden patches against pixels normalised patch by patch. 60% are dropped,
since 36 patches repeat each other less than the paper's 196, of which it drops 75%.

Axes: B images, N patches, P pixel values of a patch (side * side * 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.objective import Objective, ObjectiveLoss, PretrainingBatch
from zoo.views import SHIFTS, normalise, shift_and_jitter


def patchify(pixels: Tensor, side: int) -> Tensor:
    """Return `(B, N, P)` patches of `(B, 3, H, W)` pixels, row-major, colours last in a pixel."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // side, width // side
    cut = pixels.reshape(batch, channels, rows, side, columns, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, side * side * channels)


def masked_patch_loss(patches: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error on hidden patches, each target normalised by itself.

    Args:
        patches: `(B, N, P)` pixels.
        prediction: `(B, N, P)`.
        mask: `(B, N)`, 1 where hidden.

    Returns:
        The scalar mean over hidden patches, in squared units of a patch's standard deviation.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    variance = patches.var(dim=-1, keepdim=True)
    target = (patches - mean) / (variance + 1e-6).sqrt()
    error = (prediction - target).square().mean(dim=-1)
    return (error * mask).sum() / mask.sum()


class MaeObjective(Objective):
    """MAE; `encoder` is the transformers model with its decoder, which is dropped afterwards."""

    augmentation = SHIFTS

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: PretrainingBatch, generator: torch.Generator) -> ObjectiveLoss:
        """Return the reconstruction loss."""
        pixels = normalise(shift_and_jitter(batch.images, generator))
        side = self.encoder.config.patch_size
        patches = patchify(pixels, side)
        noise = torch.rand(patches.shape[:2], generator=generator)
        seen = self.encoder.vit(pixels, noise=noise.to(pixels.device))
        prediction = self.encoder.decoder(seen.last_hidden_state, seen.ids_restore).logits
        loss = masked_patch_loss(patches, prediction.float(), seen.mask)
        features = seen.last_hidden_state[:, 1:].mean(dim=1)
        return ObjectiveLoss(loss, features.detach().float(), {})

    def shipped(self) -> Any:
        """Return the encoder as the plain ViT that it is, which hides nothing."""
        from zoo.architecture import build_encoder

        plain = build_encoder("vit")
        plain.load_state_dict(self.encoder.vit.state_dict())
        return plain
