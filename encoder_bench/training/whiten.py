"""Fitting the projector's whitening to the encoder's features, before the first step."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.progress import Reporter
from encoder_bench.data.images import load_image
from encoder_bench.encoders.encoder import Encoder, encode_images
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.projectors.whitening import WhitenedProjector

_TOKENS_PER_DIRECTION = 32
_MIN_IMAGES, _MAX_IMAGES = 64, 512
_BATCH = 32


def images_to_fit(encoder: Encoder) -> int:
    """Return how many images make 32 tokens for each direction; 64 to 512."""
    wanted = math.ceil(_TOKENS_PER_DIRECTION * encoder.width / encoder.num_tokens)
    return min(max(wanted, _MIN_IMAGES), _MAX_IMAGES)


def fit_whitening(
    mllm: MLLM,
    images: Sequence[Path],
    features: Mapping[Path, Tensor] | None,
    *,
    device: torch.device,
    reporter: Reporter,
) -> None:
    """Fit the whitening of a projector that has one to the untuned encoder's features.

    It is fitted to the first `images_to_fit` of the images, or to all there are. The result
    follows from the untrained model and the images alone, so that a resumed training finds the
    same. `features` are `(N, D)` patch tokens by image path; images that it lacks are encoded
    here.

    Raises:
        DataError: an image cannot be read.
        TrainingError: there is no image.
    """
    assert isinstance(mllm.projector, WhitenedProjector)
    if not images:
        raise TrainingError("projector.whiten: training shows no image that it could be fitted to")
    encoder, known = mllm.encoder, features or {}
    paths = images[: images_to_fit(encoder)]
    found: dict[Path, Tensor] = {}
    with reporter.phase("whitening", len(paths), "images") as phase:
        for path in paths:
            if path in known:
                found[path] = known[path]
                phase.advance()
    missing = [path for path in paths if path not in found]
    if missing:
        training, home = encoder.training, next(encoder.parameters()).device
        encoder.to(device).eval()  # no dropout
        with torch.inference_mode():
            batches = encode_images(encoder, map(load_image, missing), batch_size=_BATCH)
            tokens = (each for batch in batches for each in batch)
            found |= dict(zip(missing, tokens, strict=True))
        encoder.to(home).train(training)
    mllm.projector.whitening.fit(torch.cat([found[path].float() for path in paths]))
