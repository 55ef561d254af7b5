"""Fitting the projector's whitening to the encoder's features, before the first step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from encoder_bench.data.images import load_image
from encoder_bench.data.sample import Sample
from encoder_bench.encoders.encoder import encode_images
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.projectors.whitening import WhitenedProjector

_TOKENS_PER_DIRECTION = 32
_MIN_IMAGES, _MAX_IMAGES = 64, 512
_BATCH = 32


def fit_whitening(
    mllm: MLLM,
    samples: Sequence[Sample],
    features: Mapping[Path, Tensor] | None,
    *,
    device: torch.device,
) -> None:
    """Fit the whitening, where the recipe has one, to the untuned encoder's features.

    It is fitted to the first images of the training samples, as many as make 32 tokens for each
    direction (64 to 512 images, or all there are); no test image is among them. The result follows
    from the untrained model and the samples alone, so that a resumed training finds the same.
    `features` are `(N, D)` patch tokens by image path; images that it lacks are encoded here.

    Raises:
        DataError: an image cannot be read.
    """
    if not isinstance(mllm.projector, WhitenedProjector):
        return
    encoder, known = mllm.encoder, features or {}
    wanted = math.ceil(_TOKENS_PER_DIRECTION * encoder.width / encoder.num_tokens)
    wanted = min(max(wanted, _MIN_IMAGES), _MAX_IMAGES)
    paths = list(dict.fromkeys(sample.image_path for sample in samples))[:wanted]
    found = [known[path] for path in paths if path in known]
    training, home = encoder.training, next(encoder.parameters()).device
    encoder.to(device).eval()  # no dropout
    with torch.inference_mode():
        images = (load_image(path) for path in paths if path not in known)
        for batch in encode_images(encoder, images, batch_size=_BATCH):
            found += batch
    encoder.to(home).train(training)
    mllm.projector.whitening.fit(torch.cat([tokens.float() for tokens in found]))
