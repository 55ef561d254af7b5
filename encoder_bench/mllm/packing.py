"""From questions and answers as text to a batch for `MLLM.loss`.

What belongs here: tokenising dialogues and joining them with their images. How many questions
share one image prefix is told in `layout.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from encoder_bench.base.errors import DataError
from encoder_bench.mllm.batch import (
    ImageDialogue,
    TokenizedDialogue,
    TokenizedTurn,
    TrainingBatch,
)
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.shared_rows import Rows, lay_out

__all__ = [
    "ImageDialogue",
    "Rows",
    "TokenizedDialogue",
    "TokenizedTurn",
    "TrainingBatch",
    "lay_out",
    "make_batch",
    "tokenize_dialogue",
]


def make_batch(
    language: LanguageModel,
    items: Sequence[ImageDialogue],
    *,
    shared_prefix: bool,
    row_length: int | None = None,
    pixels: Tensor | None = None,
    features: Tensor | None = None,
) -> TrainingBatch:
    """Tokenise dialogues and join them with their images.

    Args:
        language: gives tokenizer, chat template and context length. Where it cannot keep
            questions apart by a mask, separate sequences are laid out whatever is asked.
        items: one dialogue an image.
        shared_prefix: lay all questions of an image behind one image prefix.
        row_length: see `TrainingBatch`.
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
        row_length=row_length,
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
