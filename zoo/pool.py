"""The images that all objectives are pretrained on, held in memory, and batches drawn from them.

Axes: P images of the pool, B of a batch, H and W pixels, C classes, L caption tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from zoo.objective import PretrainingBatch


@dataclass(frozen=True, slots=True)
class ImagePool:
    """Images with captions and classes.

    Attributes:
        images: `(P, 3, H, W)` uint8.
        captions: of each image, at least one tuple of L token ids.
        labels: `(P, C)` 0 or 1.
        classes: names of the C classes, by what they are about.
        description: JSON for the card: where the images are from.
    """

    images: Tensor
    captions: tuple[tuple[tuple[int, ...], ...], ...]
    labels: Tensor
    classes: dict[str, tuple[str, ...]]
    description: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> ImagePool:
        """Return the pool with its images and labels, and so its batches, on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batch(self, count: int, generator: torch.Generator) -> PretrainingBatch:
        """Return `count` images drawn with replacement, each with one of its captions."""
        device = self.images.device
        index = torch.randint(len(self), (count,), generator=generator)
        choice = torch.rand(count, generator=generator).tolist()
        captions = [
            self.captions[image][int(share * len(self.captions[image]))]
            for image, share in zip(index.tolist(), choice, strict=True)
        ]
        index = index.to(device)
        return PretrainingBatch(
            images=self.images[index].float() / 255.0,
            captions=torch.tensor(captions, dtype=torch.long, device=device),
            labels=self.labels[index],
        )


def stack_images(images: Sequence[Image | np.ndarray]) -> Tensor:
    """Return `(P, 3, H, W)` uint8 of equally large RGB images or `(H, W, 3)` arrays."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def caption_ids(tokenizer: Any, caption: str, *, length: int) -> tuple[int, ...]:
    """Return `length` ids: beginning, words (cut where too long), end, padding 0."""
    words: list[int] = tokenizer(caption, add_special_tokens=False)["input_ids"]
    ids = [tokenizer.bos_token_id, *words[: length - 2], tokenizer.eos_token_id]
    return tuple(ids + [0] * (length - len(ids)))
