"""Whitening in front of any projector: features of every encoder come in with one covariance.

What belongs here: the affine map, how it is fitted, and the projector that has it in front.

Axes: B images, N patch tokens, D encoder width, T tokens of the sample that it is fitted to.
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
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int) -> None:
        """Begin as the identity on `(..., width)`."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Set mean and matrix from a `(T, D)` sample of patch tokens; computed in float64."""
        sample = tokens.detach().to("cpu", torch.float64)
        covariance = torch.cov(sample.T)
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(0.0)
        spread = values + SHRINKAGE * values.mean().clamp_min(torch.finfo(torch.float32).tiny)
        self.mean.copy_(sample.mean(dim=0))
        self.matrix.copy_(vectors @ torch.diag(spread.rsqrt()) @ vectors.T)

    def forward(self, features: Tensor) -> Tensor:
        """Return whitened `(B, N, D)` features, in float32: rounding drowns small directions."""
        with torch.autocast(features.device.type, enabled=False):
            whitened: Tensor = (features.float() - self.mean.float()) @ self.matrix.float()
        return whitened


class WhitenedProjector(Projector):
    """A projector that gets whitened features.

    Attributes:
        whitening: fitted to the encoder's features of training images before the first step.
        inner: the projector that the recipe names.
    """

    def __init__(self, inner: Projector) -> None:
        """Put a whitening that is not fitted yet in front of `inner`."""
        super().__init__(
            inner.settings, grid=inner.grid, width=inner.width, llm_width=inner.llm_width
        )
        self.whitening = Whitening(inner.width)
        self.inner = inner

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, D_llm)`."""
        projected: Tensor = self.inner(self.whitening(features))
        return projected

    def num_tokens(self, patch_tokens: int) -> int:
        """Return what the inner projector makes of them."""
        return self.inner.num_tokens(patch_tokens)


@torch.no_grad()
def fold_into(layer: nn.Linear, whitening: Whitening) -> nn.Linear:
    """Return a linear layer that does on raw features what `layer` does on whitened ones."""
    matrix = whitening.matrix.double()
    weight = layer.weight.double() @ matrix.T
    folded = nn.Linear(layer.in_features, layer.out_features)
    folded.weight.copy_(weight)
    bias = 0.0 if layer.bias is None else layer.bias.double()
    folded.bias.copy_(bias - weight @ whitening.mean.double())
    return folded
