"""Whitening in front of any projector: features of every encoder come in with one covariance.

Axes: B images, N patch tokens, D encoder width, M visual tokens, E LLM width, T sampled tokens.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.progress import Reporter
from encoder_bench.data.images import load_image
from encoder_bench.encoders.encoder import Encoder, encode_images
from encoder_bench.mllm.projectors.projector import Projector

_TOKENS_PER_DIRECTION = 32
_MIN_IMAGES, _MAX_IMAGES = 64, 512
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
        weight = layer.weight.cpu().double() @ self.matrix.cpu().double().T
        folded = nn.Linear(layer.in_features, layer.out_features)
        folded.weight.copy_(weight)
        folded.bias.copy_(layer.bias.cpu().double() - weight @ self.mean.cpu().double())
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

    def start_from(self, embeddings: Tensor) -> None:
        """Let the inner projector start from `(V, E)` embeddings."""
        self.inner.start_from(embeddings)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)`."""
        projected: Tensor = self.inner(self.whitening(features))
        return projected

    def fit(
        self,
        encoder: Encoder,
        images: Sequence[Path],
        features: Mapping[Path, Tensor],
        *,
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        """Fit the whitening to the untuned encoder's features, before the first step.

        It is fitted to the first `images_to_fit` of the images, or to all there are. The result
        follows from the untrained model and the images alone, so that a resumed training finds the
        same. `features` are `(N, D)` patch tokens by image path; images that it lacks are encoded
        here.

        Raises:
            DataError: an image cannot be read.
            TrainingError: there is no image.
        """
        if not images:
            raise TrainingError(
                "projector.whiten: training shows no image that it could be fitted to"
            )
        paths = images[: images_to_fit(encoder)]
        found: dict[Path, Tensor] = {}
        with reporter.phase("whitening", len(paths), "images") as phase:
            for path in paths:
                if path in features:
                    found[path] = features[path]
                    phase.advance()
        missing = [path for path in paths if path not in found]
        training, home = encoder.training, next(encoder.parameters()).device
        if missing:
            encoder.to(device).eval()  # no dropout
            with torch.inference_mode():
                batches = encode_images(encoder, map(load_image, missing))
                tokens = (each for batch in batches for each in batch)
                found |= dict(zip(missing, tokens, strict=True))
            encoder.to(home).train(training)
        self.whitening.fit(torch.cat([found[path].float() for path in paths]))


def images_to_fit(encoder: Encoder) -> int:
    """Return how many images make 32 tokens for each direction; 64 to 512."""
    wanted = math.ceil(_TOKENS_PER_DIRECTION * encoder.width / encoder.num_tokens)
    return min(max(wanted, _MIN_IMAGES), _MAX_IMAGES)
