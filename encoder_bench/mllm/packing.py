"""Sequence packing: many questions behind one image's shared prefix, kept apart in one row.

One image with two questions, `v` its visual tokens, `q`/`a` prompt and answer tokens:

    tokens        v v v q a a q a      mask (row attends to column)
    turn          0 0 0 1 1 1 2 2      v v v q a a q a
    position id   0 1 2 3 4 5 3 4    a 1 1 1 1 1 1 . .   last answer token of question 1
                                     a 1 1 1 . . . 1 1   last answer token of question 2

Each question's position ids go on from the prefix, and no question sees another, so attention and
rotary phases are those of separate sequences: loss and gradients are the same. Several images
share a row under the same rule.

Axes: R rows, L tokens of a row, T answer tokens, B images, M visual tokens per image, N patch
tokens, D encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from encoder_bench.base.errors import DataError
from encoder_bench.mllm.language import LanguageModel

_PREFIX = 0
_NONE = -1


@dataclass(frozen=True, slots=True)
class ImageDialogue:
    """One image's training questions: `turns` holds (prompt, answer), each asked on its own."""

    image_id: int | str
    turns: tuple[tuple[str, str], ...]


class TokenizedTurn(NamedTuple):
    """Token ids of one question and of the answer that is taught, its end token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class TokenizedDialogue(NamedTuple):
    """Questions as token ids; `prefix` holds those before the visual tokens."""

    image_id: int | str
    prefix: tuple[int, ...]
    turns: tuple[TokenizedTurn, ...]

    def length(self, visual_tokens: int) -> int:
        """Return the tokens of a row that holds it."""
        asked = sum(len(turn.prompt) + len(turn.answer) - 1 for turn in self.turns)
        return len(self.prefix) + visual_tokens + asked


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """What an `MLLM` trains on: tokenised dialogues and their images.

    At most one of `pixels` and `features` is set; with neither the dialogues are text only.

    Attributes:
        dialogues: one per image, in the order of the images.
        shared_prefix: put all questions of an image behind one image prefix.
        row_length: tokens of a row into which several images are packed under a shared prefix;
            None for the longest image's length, which makes no row longer.
        pixels: `(B, 3, H, W)` as the encoder's transform makes them.
        features: `(B, N, D)` patch tokens, computed before.
    """

    dialogues: tuple[TokenizedDialogue, ...]
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


def make_batch(
    language: LanguageModel,
    items: Sequence[ImageDialogue],
    *,
    shared_prefix: bool,
    row_length: int | None = None,
    pixels: Tensor | None = None,
    features: Tensor | None = None,
) -> TrainingBatch:
    """Return tokenised dialogues, one per image, with the images' pixels or features.

    Where the language model cannot keep questions apart by a mask, each question gets a row of
    its own whatever is asked.

    Raises:
        DataError: an image without a question, or an empty answer; names the image.
    """
    images = pixels if pixels is not None else features
    if images is not None and len(images) != len(items):
        raise ValueError(f"{len(images)} images for {len(items)} dialogues")
    if pixels is not None and features is not None:
        raise ValueError("give pixels or features, not both")
    return TrainingBatch(
        tokenize_dialogues(language, items, image=images is not None),
        shared_prefix=shared_prefix and language.keeps_questions_apart,
        row_length=row_length,
        pixels=pixels,
        features=features,
    )


def tokenize_dialogues(
    language: LanguageModel, items: Sequence[ImageDialogue], *, image: bool
) -> tuple[TokenizedDialogue, ...]:
    """Return dialogues' token ids.

    Raises:
        DataError: no question, or an empty answer; names the image.
    """
    prefix, dialogues = tuple(language.prefix_ids(image=image)), []
    for item in items:
        if not item.turns:
            raise DataError(f"image {item.image_id}: no question to train on")
        turns = []
        for prompt, answer in item.turns:
            if not answer.strip():
                raise DataError(f"image {item.image_id}: empty answer to {prompt!r}")
            turns.append(TokenizedTurn(*map(tuple, language.turn_ids(prompt, answer, image=image))))
        dialogues.append(TokenizedDialogue(item.image_id, prefix, tuple(turns)))
    return tuple(dialogues)


class PackedRows(NamedTuple):
    """A batch as rows for one forward pass of the language model.

    Attributes:
        plain: every row is one plain causal sequence, so that no mask is needed.
        input_ids: `(R, L)` text token ids; the pad id under visual tokens and padding.
        visual_index: `(R, L)` index into the batch's B * M visual tokens, -1 for text.
        image: `(R, L)` which image a token belongs to, -1 for padding.
        turn: `(R, L)` 0 in an image's prefix, 1, 2... in its questions.
        position_ids: `(R, L)`.
        loss_rows: `(T,)` row of the token that predicts each answer token.
        loss_columns: `(T,)` its column.
        targets: `(T,)` the answer tokens.
    """

    plain: bool
    input_ids: Tensor
    visual_index: Tensor
    image: Tensor
    turn: Tensor
    position_ids: Tensor
    loss_rows: Tensor
    loss_columns: Tensor
    targets: Tensor

    def mask(self, *, flex: bool = False) -> Any:
        """Return which token may attend to which, None where causal is enough.

        These are `(R, 1, L, L)` booleans, or FlexAttention's `BlockMask`. Every token sees itself,
        padding too, so that no row of the softmax is empty.
        """
        if self.plain:
            return None
        image, turn, (rows, length), device = self.image, self.turn, self.image.shape, self.device

        def may_attend(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same_image = image[row, query] == image[row, key]
            in_reach = (turn[row, key] == _PREFIX) | (turn[row, query] == turn[row, key])
            return same_image & in_reach & (query >= key)

        if flex:
            from torch.nn.attention.flex_attention import create_block_mask

            return create_block_mask(may_attend, rows, None, length, length, device=str(device))
        row_R11 = torch.arange(rows, device=device)[:, None, None]
        key_L = torch.arange(length, device=device)
        return may_attend(row_R11, row_R11, key_L[:, None], key_L)[:, None]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.input_ids.device

    def to(self, device: torch.device | str) -> PackedRows:
        """Return the rows with every tensor on `device`."""
        plain, *tensors = self
        return PackedRows(plain, *(x.to(device, non_blocking=True) for x in tensors))


def pack(batch: TrainingBatch, language: LanguageModel, *, visual_tokens: int) -> PackedRows:
    """Place a batch's dialogues in rows.

    With a shared prefix, images are packed into rows of at most `batch.row_length` tokens, longest
    first; an image that is longer by itself has its own row. Without, each question has its own.

    Raises:
        DataError: one image with one question is longer than the context; names the image.
    """
    for image_id, prefix, turns in batch.dialogues:
        before = len(prefix) + visual_tokens
        length = before + max(len(turn.prompt) + len(turn.answer) for turn in turns)
        if length > language.max_length:
            raise DataError(
                f"image {image_id}: a question needs {length} tokens ({before} before it), the "
                f"language model's context has {language.max_length}; shorten the text or lower "
                "--visual-tokens"
            )
    dialogues = list(enumerate(batch.dialogues))
    if not batch.shared_prefix:
        rows = [[(n, item._replace(turns=(turn,)))] for n, item in dialogues for turn in item.turns]
    else:
        longest = max(item.length(visual_tokens) for _, item in dialogues)
        rows = _first_fit(dialogues, visual_tokens, max(batch.row_length or 0, longest))
    return _write_rows(rows, language.pad_id, visual_tokens=visual_tokens)


def pack_candidates(
    questions: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    *,
    pad_id: int,
    prefix_length: int,
) -> PackedRows:
    """Place each question in a row with all its candidate answers behind it, kept apart.

    Position ids go on from `prefix_length`, the tokens before the question in the model's cache.
    """
    rows = []
    for number, (ids, replies) in enumerate(questions):
        turns = tuple(TokenizedTurn((), tuple(reply)) for reply in replies)
        rows.append([(number, TokenizedDialogue(number, tuple(ids), turns))])
    return _write_rows(rows, pad_id, first_position=prefix_length)


_Row = list[tuple[int, TokenizedDialogue]]
"""Dialogues in one row, each with the number of its image."""


def _first_fit(dialogues: _Row, visual_tokens: int, row_length: int) -> list[_Row]:
    """Fill rows first-fit, longest image first; ties keep the batch's order."""
    rows: list[_Row] = []
    space: list[int] = []
    lengths = [item.length(visual_tokens) for _, item in dialogues]
    for number, item in sorted(dialogues, key=lambda pair: -lengths[pair[0]]):
        needed = lengths[number]
        row = next((index for index, free in enumerate(space) if needed <= free), len(rows))
        if row == len(rows):
            rows.append([])
            space.append(row_length)
        rows[row].append((number, item))
        space[row] -= needed
    return rows


def _write_rows(
    rows: Sequence[_Row], pad_id: int, *, visual_tokens: int = 0, first_position: int = 0
) -> PackedRows:
    """Return the rows as tensors. The last answer token is not fed in: it predicts nothing."""
    packed: list[list[tuple[int, int, int, int, int]]] = []
    loss: list[tuple[int, int, int]] = []
    for dialogues in rows:
        row: list[tuple[int, int, int, int, int]] = []
        for image, (_, prefix, turns) in dialogues:
            visual = range(image * visual_tokens, (image + 1) * visual_tokens)
            before = [(token, _NONE) for token in prefix] + [(pad_id, index) for index in visual]
            for place, (token, index) in enumerate(before, start=first_position):
                row.append((token, index, image, _PREFIX, place))
            prefix_end, start = len(row), first_position + len(before)
            for number, (prompt, answer) in enumerate(turns, start=1):
                prompt_end = len(row) + len(prompt)
                # the prompt's last token predicts the answer's first; without one, the prefix's
                first = (prompt_end if prompt else prefix_end) - 1
                columns = (first, *range(prompt_end, prompt_end + len(answer) - 1))
                loss += [(len(packed), *pair) for pair in zip(columns, answer, strict=True)]
                for place, token in enumerate((*prompt, *answer[:-1]), start=start):
                    row.append((token, _NONE, image, number, place))
        packed.append(row)
    longest, padding = max(map(len, packed)), (pad_id, _NONE, _NONE, _PREFIX, 0)
    padded = [row + [padding] * (longest - len(row)) for row in packed]
    tokens_5RL = torch.tensor(padded).movedim(2, 0).contiguous()
    loss_3T = torch.tensor(loss).T.contiguous()
    plain = all(len(row) == 1 and len(row[0][1].turns) == 1 for row in rows)
    return PackedRows(plain, *tokens_5RL, *loss_3T)
