"""Fitting the projector's whitening to the encoder's features, before the first step.

What belongs here: which training images it is fitted to. The map is `projectors/whitening.py`'s.
"""

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

_TOKENS_A_DIRECTION = 32
_LEAST_IMAGES, _MOST_IMAGES = 64, 512
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
    direction (at least 64, at most 512 images, or all there are); no test image is among them. The
    result follows from model and samples alone, so that a resumed training finds the same.

    Args:
        mllm: before any training.
        samples: training samples.
        features: patch tokens `(N, D)` by image path, where they are computed already.
        device: where to encode.

    Raises:
        DataError: an image cannot be read.
    """
    projector = mllm.projector
    if not isinstance(projector, WhitenedProjector):
        return
    encoder = mllm.encoder
    wanted = math.ceil(_TOKENS_A_DIRECTION * encoder.width / encoder.num_tokens)
    wanted = min(max(wanted, _LEAST_IMAGES), _MOST_IMAGES)
    paths = list(dict.fromkeys(sample.image_path for sample in samples))[:wanted]
    known = features or {}
    found = [known[path] for path in paths if path in known]
    rest = [path for path in paths if path not in known]
    found += _encoded(mllm, rest, device)
    projector.whitening.fit(torch.cat([tokens.float() for tokens in found]))


@torch.inference_mode()
def _encoded(mllm: MLLM, paths: Sequence[Path], device: torch.device) -> list[Tensor]:
    """Return `(N, D)` patch tokens of each image on the CPU, nothing dropped out."""
    encoder, training = mllm.encoder, mllm.encoder.training
    home = next(encoder.parameters()).device
    encoder.to(device).eval()
    tokens: list[Tensor] = []
    for batch in encode_images(encoder, map(load_image, paths), batch_size=_BATCH):
        tokens += batch
    encoder.to(home).train(training)
    return tokens
