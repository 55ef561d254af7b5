"""A trained MLLM that answers questions about image files, for evaluation."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.data.images import load_image
from encoder_bench.mllm.generate import generate, score
from encoder_bench.mllm.model import MLLM
from encoder_bench.tasks.controls import MEAN_IMAGE
from encoder_bench.tasks.predict import Images, Prompts, Texts

MEAN_OF, _BATCH = 512, 16
"""Images that the mean image is the mean of, and images of one forward pass."""


class ImagePredictor:
    """Answers prompts about images; meets `tasks.predict.Predictor`.

    `images` are one path for each group of prompts, or None to show the model no image at all.
    Images without `(N, D)` patch tokens in `features` are encoded here. `MEAN_IMAGE` has the mean
    patch tokens of the first 512 `training` images, which are those that training has shown.
    """

    def __init__(
        self,
        mllm: MLLM,
        features: Mapping[Path, Tensor] | None = None,
        training: Sequence[Path] = (),
    ) -> None:
        """Keep the model and the features; nothing is computed yet."""
        self._mllm = mllm
        self._training = list(dict.fromkeys(training))[:MEAN_OF]
        self._features: Mapping[Path, Tensor] = features or {}

    @torch.inference_mode()
    def answer(self, images: Images, prompts: Prompts, decoding: DecodingSettings) -> Texts:
        """Return one answer for each prompt; a DataError for an image that cannot be read."""
        visual = None if images is None else self._visual_tokens(images)
        return generate(self._mllm, visual, [list(group) for group in prompts], decoding)

    @torch.inference_mode()
    def choose(self, images: Images, prompts: Prompts, candidates: Sequence[str]) -> Texts:
        """Return for each prompt the candidate with the highest log-probability as its answer.

        Raises:
            DataError: an image cannot be read, or a candidate is empty.
        """
        visual = None if images is None else self._visual_tokens(images)
        scores = score(self._mllm, visual, [list(group) for group in prompts], candidates)
        return [
            [candidates[max(range(len(row)), key=row.__getitem__)] for row in group]
            for group in scores
        ]

    def _visual_tokens(self, images: Sequence[Path]) -> Tensor:
        """Return `(B, M, D_llm)`."""
        if list(images) == [MEAN_IMAGE]:
            return self._mllm.visual_tokens(self._mean)
        return self._mllm.visual_tokens(self._patch_tokens(images))

    @functools.cached_property
    def _mean(self) -> Tensor:
        """The mean patch tokens of the training images, `(1, N, D)`."""
        starts = range(0, len(self._training), _BATCH)
        batches = [self._patch_tokens(self._training[at : at + _BATCH]) for at in starts]
        total = torch.stack([tokens.sum(dim=0, dtype=torch.float32) for tokens in batches]).sum(0)
        return (total / len(self._training)).to(batches[0].dtype)[None]

    def _patch_tokens(self, images: Sequence[Path]) -> Tensor:
        device = next(self._mllm.projector.parameters()).device
        if all(path in self._features for path in images):
            return torch.stack([self._features[path] for path in images]).to(device)
        pixels = self._mllm.encoder.pixels(map(load_image, images))
        return self._mllm.features(pixels.to(device))
