"""A trained MLLM that answers questions about image files, for evaluation."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.data.images import load_image
from encoder_bench.mllm.generate import answer
from encoder_bench.mllm.model import MLLM
from encoder_bench.tasks.controls import MEAN_IMAGE
from encoder_bench.tasks.predictions import Images, Prompts, Reply

MEAN_OF, _BATCH = 512, 16
"""Images that the mean image is the mean of, and images of one forward pass."""


class ImagePredictor:
    """Answers prompts about images; meets `tasks.predictions.Predictor`.

    Images without `(N, D)` patch tokens in `features` are encoded here. `MEAN_IMAGE` has the mean
    patch tokens of the first 512 `training` images, which are those that training has shown.
    """

    def __init__(
        self,
        mllm: MLLM,
        features: Mapping[Path, Tensor] | None = None,
        training: Sequence[Path] = (),
    ) -> None:
        self._mllm = mllm
        self._training = list(dict.fromkeys(training))[:MEAN_OF]
        self._features: Mapping[Path, Tensor] = features or {}

    @torch.inference_mode()
    def answer(
        self,
        images: Images,
        prompts: Prompts,
        decoding: DecodingSettings,
        candidates: Sequence[str] = (),
    ) -> list[list[Reply]]:
        """Return one reply to each prompt, its choice the candidate with the highest probability.

        Raises:
            DataError: an image cannot be read, or a candidate is empty.
        """
        replies = answer(self._mllm, self._visual_tokens(images), prompts, decoding, candidates)
        return [
            [
                Reply(text, candidates[values.index(max(values))] if values else None)
                for text, values in group
            ]
            for group in replies
        ]

    def _visual_tokens(self, images: Images) -> list[Tensor | None]:
        """Return `(M, D_llm)` of each image."""
        files = [image for image in images if image is not None and image != MEAN_IMAGE]
        encoded = iter(self._mllm.visual_tokens(self._patch_tokens(files)) if files else ())
        return [
            None if image is None else self._mean_tokens if image == MEAN_IMAGE else next(encoded)
            for image in images
        ]

    @functools.cached_property
    def _mean_tokens(self) -> Tensor:
        """`(M, D_llm)` of the training images' mean patch tokens."""
        starts = range(0, len(self._training), _BATCH)
        batches = [self._patch_tokens(self._training[at : at + _BATCH]) for at in starts]
        total = torch.stack([tokens.sum(dim=0, dtype=torch.float32) for tokens in batches]).sum(0)
        mean = (total / len(self._training)).to(batches[0].dtype)
        return self._mllm.visual_tokens(mean[None])[0]

    def _patch_tokens(self, images: Sequence[Path]) -> Tensor:
        device = next(self._mllm.projector.parameters()).device
        if all(path in self._features for path in images):
            return torch.stack([self._features[path] for path in images]).to(device)
        pixels = self._mllm.encoder.pixels(map(load_image, images))
        return self._mllm.features(pixels.to(device))
