"""What `MLLM.loss` takes: dialogues as token ids, with their images.

What belongs here: the records alone. `packing.py` makes them from text, `layout.py` lays them out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ImageDialogue:
    """One image's training questions: `turns` holds (prompt, answer), each asked on its own."""

    image_id: int | str
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TokenizedTurn:
    """Token ids of one question and of the answer that is taught, its end token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenizedDialogue:
    """An image's questions as token ids."""

    image_id: int | str
    turns: tuple[TokenizedTurn, ...]


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """What `MLLM.loss` takes: tokenised dialogues and their images.

    At most one of `pixels` and `features` is set; with neither the dialogues are text only.

    Attributes:
        dialogues: one an image, in the order of the images.
        prefix: token ids before the visual tokens, the same for all images.
        pad_id: fills rows; masked wherever it could matter.
        max_length: the language model's context, in tokens.
        shared_prefix: lay all questions of an image behind one image prefix.
        row_length: tokens of a row into which several images are packed under a shared prefix;
            None for the longest image's length, which makes no row longer.
        pixels: `(B, 3, H, W)` as the encoder's transform makes them.
        features: `(B, N, D)` patch tokens, computed before.
    """

    dialogues: tuple[TokenizedDialogue, ...]
    prefix: tuple[int, ...]
    pad_id: int
    max_length: int
    shared_prefix: bool
    row_length: int | None = None
    pixels: Tensor | None = None
    features: Tensor | None = None

    @property
    def answer_tokens(self) -> int:
        """How many tokens the loss is summed over."""
        return sum(len(turn.answer) for item in self.dialogues for turn in item.turns)

    def to(self, device: torch.device | str) -> TrainingBatch:
        """Return the batch with its images on `device`."""
        return replace(
            self,
            pixels=None if self.pixels is None else self.pixels.to(device, non_blocking=True),
            features=None if self.features is None else self.features.to(device, non_blocking=True),
        )
