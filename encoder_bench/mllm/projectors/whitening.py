"""Whitening in front of any projector: features of every encoder come in with one covariance.

Axes: B images, N patch tokens, D encoder width, M visual tokens, E LLM width, T sampled tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from encoder_bench.mllm.projectors.projector import Projector

SHRINKAGE = 1e-4
"""Share of the mean variance that is added to every direction before it is inverted, so that
directions in which features hardly differ are not blown up into noise."""


class Whitening(nn.Module):
    """`(x - mean) @ matrix`, fixed before training; until it is fitted, x itself.

    Families differ in the scale, the offset and the correlation of their features more than in
    what the features hold: where a few directions carry nearly all variance, a freshly
    initialised projector sees nothing else. MAE's authors put a BatchNorm without affine in front
    of the linear classifier for the same reason (He et al. 2021, "Masked Autoencoders Are Scalable
    Vision Learners", appendix A.1, linear probing); whitening removes the correlation too.

    The matrix is `(C + s I)^(-1/2)`, symmetric, with C the covariance and s `SHRINKAGE` times its
    mean eigenvalue (ZCA; Kessy, Lewin and Strimmer 2018, "Optimal Whitening and Decorrelation").
    With `channels_only`, C is its diagonal, as in that BatchNorm: each channel is scaled alone.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int, *, channels_only: bool = False) -> None:
        super().__init__()
        self.channels_only = channels_only
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Set mean and matrix from a `(T, D)` sample of patch tokens; computed in float64."""
        sample_TD = tokens.detach().to("cpu", torch.float64)
        covariance_DD = torch.cov(sample_TD.T)
        if self.channels_only:
            covariance_DD = covariance_DD.diagonal().diag()
        values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
        values_D = values_D.clamp_min(0.0)
        tiny = torch.finfo(torch.float32).tiny
        spread_D = values_D + SHRINKAGE * values_D.mean().clamp_min(tiny)
        self.mean.copy_(sample_TD.mean(dim=0))
        self.matrix.copy_(vectors_DD @ torch.diag(spread_D.rsqrt()) @ vectors_DD.T)

    def forward(self, features: Tensor) -> Tensor:
        """Return whitened `(B, N, D)` features, in float32: rounding drowns small directions."""
        with torch.autocast(features.device.type, enabled=False):
            whitened: Tensor = (features.float() - self.mean.float()) @ self.matrix.float()
        return whitened

    @torch.no_grad()
    def folded_into(self, layer: nn.Linear) -> nn.Linear:
        """Return a linear layer that does on raw features what `layer` does on whitened ones."""
        weight = layer.weight.double() @ self.matrix.double().T
        folded = nn.Linear(layer.in_features, layer.out_features)
        folded.weight.copy_(weight)
        folded.bias.copy_(layer.bias.double() - weight @ self.mean.double())
        return folded


class WhitenedProjector(Projector):
    """A projector that gets whitened features.

    Attributes:
        whitening: fitted to the encoder's features of training images before the first step.
        inner: the projector that the recipe names.
    """

    def __init__(self, inner: Projector) -> None:
        super().__init__(
            inner.settings, grid=inner.grid, width=inner.width, llm_width=inner.llm_width
        )
        self.whitening = Whitening(inner.width, channels_only=inner.settings.whiten == "channels")
        self.inner = inner
        self.visual_tokens = inner.visual_tokens

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        projected: Tensor = self.inner(self.whitening(features))
        return projected
