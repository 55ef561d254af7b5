"""Sequence packing: many questions behind one image's shared prefix, kept apart in one row.

One image with two questions, `v` its visual tokens, `q`/`a` prompt and answer tokens:

    tokens        v v v q a a q a      mask (row attends to column)
    turn          0 0 0 1 1 1 2 2      v v v q a a q a
    position id   0 1 2 3 4 5 3 4    a 1 1 1 1 1 1 . .   last answer token of question 1
                                     a 1 1 1 . . . 1 1   last answer token of question 2

Each question's position ids go on from the prefix, and no question sees another, so attention and
rotary phases are those of separate sequences: loss and gradients are the same. Several images or
conversations share a row under the same rule.

A conversation is one such sequence, whose turns see those before them (`dialogue.py`).

Axes: R rows, L tokens of a row, T answer tokens, B images, M visual tokens per image, N patch
tokens, D encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encoder_bench.base.errors import DataError
from encoder_bench.mllm.dialogue import Segment, TokenizedDialogue
from encoder_bench.mllm.language import LanguageModel

_SHARED = 0
_NONE = -1


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """What an `MLLM` trains on: tokenised dialogues and their images.

    Attributes:
        dialogues: in the order of their images, of which each shows none, one or several.
        shared_prefix: put all questions of an image behind one image prefix.
        row_length: tokens of a row into which several dialogues are packed under a shared prefix;
            None for the longest one's length, which makes no row longer.
        images: `(B, 3, H, W)` as the encoder's transform makes them; None for text alone.
        encoded: whether images are `(B, N, D)` patch tokens instead.
    """

    dialogues: tuple[TokenizedDialogue, ...]
    shared_prefix: bool
    row_length: int | None = None
    images: Tensor | None = None
    encoded: bool = False

    @property
    def answer_tokens(self) -> int:
        """How many tokens the loss is summed over."""
        return sum(item.answer_tokens for item in self.dialogues)

    def halves(self) -> list[TrainingBatch]:
        """Return two batches of half the dialogues each, or this one where it has but one."""
        middle = len(self.dialogues) // 2
        if not middle:
            return [self]
        shown = sum(item.images for item in self.dialogues[:middle])

        def part(dialogues: slice, images: slice) -> TrainingBatch:
            kept = None if self.images is None else self.images[images]
            return replace(self, dialogues=self.dialogues[dialogues], images=kept)

        first, second = slice(0, middle), slice(middle, None)
        return [part(first, slice(0, shown)), part(second, slice(shown, None))]

    def to(self, device: torch.device | str) -> TrainingBatch:
        """Return the batch with its images on `device`."""
        moved = None if self.images is None else moved_to(device, self.images)
        return replace(self, images=moved)


def moved_to(device: torch.device | str, tensor: Tensor) -> Tensor:
    """Return a tensor on `device`; only CUDA keeps what it copies from until it has copied it.

    Apple's MPS reads memory that was freed meanwhile (PyTorch issue 189690).
    """
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")


def batch_dialogues(
    language: LanguageModel,
    dialogues: tuple[TokenizedDialogue, ...],
    *,
    shared_prefix: bool,
    row_length: int | None = None,
    images: Tensor | None = None,
    encoded: bool = False,
) -> TrainingBatch:
    """Return tokenised dialogues with the pixels or patch tokens of their images, in order.

    Where the language model cannot keep questions apart by a mask, each question gets a row of
    its own whatever is asked.
    """
    given, shown = 0 if images is None else len(images), sum(item.images for item in dialogues)
    if given != shown:
        raise ValueError(f"{given} images for {shown} that the dialogues show")
    shared = shared_prefix and language.keeps_questions_apart
    return TrainingBatch(dialogues, shared, row_length, images, encoded)


class PackedRows(NamedTuple):
    """A batch as rows for one forward pass of the language model.

    Attributes:
        plain: every row is one plain causal sequence, so that no mask is needed.
        input_ids: `(R, L)` text token ids; the pad id under visual tokens and padding.
        visual_index: `(R, L)` index into the batch's B * M visual tokens, -1 for text.
        dialogue: `(R, L)` which dialogue a token belongs to, -1 for padding.
        turn: `(R, L)` 0 in an image's prefix or a conversation, 1, 2... in separate questions.
        position_ids: `(R, L)`.
        loss_rows: `(T,)` row of the token that predicts each answer token.
        loss_columns: `(T,)` its column.
        targets: `(T,)` the answer tokens.
    """

    plain: bool
    input_ids: Tensor
    visual_index: Tensor
    dialogue: Tensor
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
        dialogue, turn, device = self.dialogue, self.turn, self.device
        rows, length = turn.shape

        def may_attend(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = dialogue[row, query] == dialogue[row, key]
            in_reach = (turn[row, key] == _SHARED) | (turn[row, query] == turn[row, key])
            return same & in_reach & (query >= key)

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
        return PackedRows(plain, *(moved_to(device, x) for x in tensors))


def pack(batch: TrainingBatch, language: LanguageModel, *, visual_tokens: int) -> PackedRows:
    """Place a batch's dialogues in rows.

    With a shared prefix, dialogues are packed into rows of at most `batch.row_length` tokens,
    longest first; one that is longer by itself has its own row. Without, each question and each
    conversation has its own.

    Raises:
        DataError: one image with one question is longer than the context; names the image.
    """
    dialogues: _Row = []
    image = 0
    for number, item in enumerate(batch.dialogues):
        length, before = item.longest(visual_tokens)
        if length > language.max_length:
            raise DataError(
                f"{item.label}: a question needs {length} tokens ({before} before it), the "
                f"language model's context has {language.max_length}; shorten the text or lower "
                "--visual-tokens"
            )
        dialogues.append((number, image, item))
        image += item.images
    if not batch.shared_prefix:
        rows = [[(n, image, alone)] for n, image, item in dialogues for alone in item.apart()]
    else:
        longest = max(item.length(visual_tokens) for item in batch.dialogues)
        rows = _first_fit(dialogues, visual_tokens, max(batch.row_length or 0, longest))
    return _write_rows(rows, language.pad_id, visual_tokens=visual_tokens)


def pack_candidates(rows: Sequence[Sequence[Sequence[int]]], *, pad_id: int) -> PackedRows:
    """Place candidate answers in rows, kept apart, to go on from questions that were read before.

    Position ids count from 0 after the question, and a loss column of -1 is the question's last
    token.
    """
    placed = []
    for number, replies in enumerate(rows):
        turns = (Segment(tuple(r), taught=True, turn=n) for n, r in enumerate(replies, start=1))
        placed.append([(number, 0, TokenizedDialogue("question", tuple(turns)))])
    return _write_rows(placed, pad_id)


_Row = list[tuple[int, int, TokenizedDialogue]]
"""Dialogues in one row, each with its number in the batch and the number of its first image."""


def _first_fit(dialogues: _Row, visual_tokens: int, row_length: int) -> list[_Row]:
    """Fill rows first-fit, longest dialogue first; ties keep the batch's order."""
    rows: list[_Row] = []
    space: list[int] = []
    lengths = [(entry[-1].length(visual_tokens), entry) for entry in dialogues]
    for needed, entry in sorted(lengths, key=lambda pair: -pair[0]):
        row = next((index for index, free in enumerate(space) if needed <= free), len(rows))
        if row == len(rows):
            rows.append([])
            space.append(row_length)
        rows[row].append(entry)
        space[row] -= needed
    return rows


_Written = tuple[tuple[list[int], ...], list[tuple[int, int]]]
"""A row's tokens, field by field as in `PackedRows` from `input_ids` on, and for the loss the
column of the token that predicts each taught token, and the taught token."""


def _write_row(row: _Row, pad_id: int, visual_tokens: int) -> _Written:
    columns: tuple[list[int], ...] = ([], [], [], [], [])
    loss: list[tuple[int, int]] = []
    input_ids, visual_index, dialogue, turns, position_ids = columns
    for number, image, item in row:
        start = len(input_ids)
        last = {segment.turn: place for place, segment in enumerate(item.segments)}
        ends: dict[int, int] = {0: start - 1}  # the last column of each turn
        for place, (ids, taught, turn) in enumerate(item.segments):
            before, column = ends.get(turn, ends[0]), len(input_ids)
            if ids is None:
                tokens, index = [pad_id] * visual_tokens, image * visual_tokens
                visual_index.extend(range(index, index + len(tokens)))
                image += 1
            else:
                # a sequence's last taught token is not fed in: it predicts nothing
                tokens = list(ids[: -1 if taught and last[turn] == place else None])
                visual_index.extend([_NONE] * len(tokens))
            if ids and taught:
                loss += zip((before, *range(column, column + len(ids) - 1)), ids, strict=True)
            position = position_ids[before] + 1 if before >= start else 0
            input_ids.extend(tokens)
            dialogue.extend([number] * len(tokens))
            turns.extend([turn] * len(tokens))
            position_ids.extend(range(position, position + len(tokens)))
            ends[turn] = len(input_ids) - 1 if tokens else before
    return columns, loss


def _write_rows(rows: Sequence[_Row], pad_id: int, *, visual_tokens: int = 0) -> PackedRows:
    written = [_write_row(row, pad_id, visual_tokens) for row in rows]
    columns = zip(*(columns for columns, _ in written), strict=True)
    fields = zip(columns, (pad_id, _NONE, _NONE, _SHARED, 0), strict=True)
    tensors = [
        pad_sequence(list(map(torch.tensor, column)), batch_first=True, padding_value=filler)
        for column, filler in fields
    ]
    loss = [(row, *pair) for row, (_, pairs) in enumerate(written) for pair in pairs]
    loss_3T = torch.tensor(loss, dtype=torch.long).reshape(-1, 3).T.contiguous()
    plain = all(len(row) == 1 and len(row[0][-1].apart()) == 1 for row in rows)
    return PackedRows(plain, *tensors, *loss_3T)
