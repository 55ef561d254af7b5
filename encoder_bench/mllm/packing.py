"""A batch for training: dialogues as token ids, with their images.

What belongs here: what `MLLM.loss` takes and how it is made. How dialogues stand in rows is
`layout.py`'s job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from encoder_bench.errors import DataError

if TYPE_CHECKING:
    from encoder_bench.mllm.language import LanguageModel


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
        pixels: `(B, 3, H, W)` as the encoder's transform makes them.
        features: `(B, N, D)` patch tokens, computed before.
    """

    dialogues: tuple[TokenizedDialogue, ...]
    prefix: tuple[int, ...]
    pad_id: int
    max_length: int
    shared_prefix: bool
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


def make_batch(
    language: LanguageModel,
    items: Sequence[ImageDialogue],
    *,
    shared_prefix: bool,
    pixels: Tensor | None = None,
    features: Tensor | None = None,
) -> TrainingBatch:
    """Tokenise dialogues and join them with their images.

    Args:
        language: gives tokenizer, chat template and context length. Where it cannot keep
            questions apart by a mask, separate sequences are laid out whatever is asked.
        items: one dialogue an image.
        shared_prefix: lay all questions of an image behind one image prefix.
        pixels: `(B, 3, H, W)`, one an item, or None.
        features: `(B, N, D)`, one an item, or None.

    Raises:
        DataError: an image without a question, or an empty answer; names the image.
    """
    images = pixels if pixels is not None else features
    if images is not None and len(images) != len(items):
        raise ValueError(f"{len(images)} images for {len(items)} dialogues")
    if pixels is not None and features is not None:
        raise ValueError("give pixels or features, not both")
    has_images = images is not None
    return TrainingBatch(
        dialogues=tuple(tokenize_dialogue(language, item, image=has_images) for item in items),
        prefix=tuple(language.prefix_ids(image=has_images)),
        pad_id=language.pad_id,
        max_length=language.max_length,
        shared_prefix=shared_prefix and language.keeps_questions_apart,
        pixels=pixels,
        features=features,
    )


def tokenize_dialogue(
    language: LanguageModel, item: ImageDialogue, *, image: bool
) -> TokenizedDialogue:
    """Return a dialogue's token ids.

    Raises:
        DataError: no question, or an empty answer; names the image.
    """
    if not item.turns:
        raise DataError(f"image {item.image_id}: no question to train on")
    turns = []
    for prompt, answer in item.turns:
        if not answer.strip():
            raise DataError(f"image {item.image_id}: empty answer to {prompt!r}")
        prompt_ids, answer_ids = language.turn_ids(prompt, answer, image=image)
        turns.append(TokenizedTurn(tuple(prompt_ids), tuple(answer_ids)))
    return TokenizedDialogue(item.image_id, tuple(turns))
