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

from collections.abc import Callable, Sequence
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
    """An image's questions as token ids."""

    image_id: int | str
    turns: tuple[TokenizedTurn, ...]


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """What `MLLM.loss` takes: tokenised dialogues and their images.

    At most one of `pixels` and `features` is set; with neither the dialogues are text only.

    Attributes:
        dialogues: one per image, in the order of the images.
        prefix: token ids before the visual tokens, the same for all images.
        pad_id: fills rows; masked wherever it could matter.
        max_length: the language model's context, in tokens.
        shared_prefix: put all questions of an image behind one image prefix.
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


@dataclass(frozen=True, slots=True)
class PackedRows:
    """A batch as rows for one forward pass of the language model.

    Attributes:
        input_ids: `(R, L)` text token ids; `pad_id` under visual tokens and padding.
        visual_index: `(R, L)` index into the batch's B * M visual tokens, -1 for text.
        image: `(R, L)` which image a token belongs to, -1 for padding.
        turn: `(R, L)` 0 in an image's prefix, 1, 2... in its questions.
        position_ids: `(R, L)`.
        loss_rows: `(T,)` row of the token that predicts each answer token.
        loss_columns: `(T,)` its column.
        targets: `(T,)` the answer tokens.
        plain: every row is one plain causal sequence, so that no mask is needed.
    """

    input_ids: Tensor
    visual_index: Tensor
    image: Tensor
    turn: Tensor
    position_ids: Tensor
    loss_rows: Tensor
    loss_columns: Tensor
    targets: Tensor
    plain: bool

    def mask(self) -> Tensor | None:
        """Return the `(R, 1, L, L)` boolean mask (True: may attend), None where causal is enough.

        Every token sees itself, padding too, so that no row of the softmax is empty.
        """
        if self.plain:
            return None
        rows, length = self.image.shape
        row_R11 = torch.arange(rows, device=self.image.device)[:, None, None]
        key_L = torch.arange(length, device=self.image.device)
        return self._rule()(row_R11, row_R11, key_L[:, None], key_L)[:, None]

    def block_mask(self) -> Any:
        """Return the same mask as FlexAttention's `BlockMask`, None where causal is enough."""
        if self.plain:
            return None
        from torch.nn.attention.flex_attention import create_block_mask

        (rows, length), device = self.image.shape, str(self.image.device)
        return create_block_mask(self._rule(), rows, None, length, length, device=device)

    def _rule(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Return which query may attend to which key, of indices that broadcast."""
        image, turn = self.image, self.turn

        def may_attend(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same_image = image[row, query] == image[row, key]
            in_reach = (turn[row, key] == _PREFIX) | (turn[row, query] == turn[row, key])
            return same_image & in_reach & (query >= key)

        return may_attend

    def to(self, device: torch.device | str) -> PackedRows:
        """Return the rows with every tensor on `device`."""
        fields = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        moved = {name: x.to(device, non_blocking=True) for name, x in fields if name != "plain"}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class _Group:
    """An image's prefix and the questions that stand behind it."""

    image: int
    prefix: tuple[int, ...]
    turns: tuple[TokenizedTurn, ...]

    def length(self, visual_tokens: int) -> int:
        asked = sum(len(turn.prompt) + len(turn.answer) - 1 for turn in self.turns)
        return len(self.prefix) + visual_tokens + asked


def pack(batch: TrainingBatch, *, visual_tokens: int) -> PackedRows:
    """Place a batch's dialogues in rows.

    With a shared prefix, images are packed into rows of at most `batch.row_length` tokens, longest
    first; an image that is longer by itself has its own row. Without, each question has its own.

    Raises:
        DataError: one image with one question is longer than the context; names the image.
    """
    before = len(batch.prefix) + visual_tokens
    for image_id, turns in batch.dialogues:
        length = before + max(len(turn.prompt) + len(turn.answer) for turn in turns)
        if length > batch.max_length:
            raise DataError(
                f"image {image_id}: a question needs {length} tokens ({before} before it), the "
                f"language model's context has {batch.max_length}; shorten the text or lower "
                "--visual-tokens"
            )
    groups = [
        _Group(index, batch.prefix, dialogue.turns)
        for index, dialogue in enumerate(batch.dialogues)
    ]
    if not batch.shared_prefix:
        rows = [[replace(group, turns=(turn,))] for group in groups for turn in group.turns]
    else:
        longest = max(group.length(visual_tokens) for group in groups)
        rows = _first_fit(groups, visual_tokens, max(batch.row_length or 0, longest))
    return _write_rows(rows, batch.pad_id, visual_tokens=visual_tokens)


def pack_candidates(
    questions: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    *,
    pad_id: int,
    prefix_length: int,
) -> PackedRows:
    """Place each question in a row with all its candidate answers behind it, kept apart.

    Position ids go on from `prefix_length`, the tokens before the question in the model's cache.
    """
    rows = [
        [_Group(index, tuple(ids), tuple(TokenizedTurn((), tuple(reply)) for reply in replies))]
        for index, (ids, replies) in enumerate(questions)
    ]
    return _write_rows(rows, pad_id, first_position=prefix_length)


def _first_fit(groups: Sequence[_Group], visual_tokens: int, row_length: int) -> list[list[_Group]]:
    """Fill rows first-fit, longest image first; ties keep the batch's order."""
    rows: list[list[_Group]] = []
    space: list[int] = []
    for group in sorted(groups, key=lambda group: -group.length(visual_tokens)):
        needed = group.length(visual_tokens)
        row = next((index for index, free in enumerate(space) if needed <= free), len(rows))
        if row == len(rows):
            rows.append([])
            space.append(row_length)
        rows[row].append(group)
        space[row] -= needed
    return rows


def _write_rows(
    rows: Sequence[Sequence[_Group]],
    pad_id: int,
    *,
    visual_tokens: int = 0,
    first_position: int = 0,
) -> PackedRows:
    """Return the rows as tensors. The last answer token is not fed in: it predicts nothing."""
    packed: list[list[tuple[int, int, int, int, int]]] = []
    loss: list[tuple[int, int, int]] = []
    for groups in rows:
        row: list[tuple[int, int, int, int, int]] = []
        for group in groups:
            image, visual = group.image, range(visual_tokens)
            before = [(token, _NONE) for token in group.prefix]
            before += [(pad_id, image * visual_tokens + index) for index in visual]
            for place, (token, index) in enumerate(before, start=first_position):
                row.append((token, index, image, _PREFIX, place))
            prefix_end, start = len(row), first_position + len(before)
            for number, (prompt, answer) in enumerate(group.turns, start=1):
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
    plain = all(len(groups) == 1 and len(groups[0].turns) == 1 for groups in rows)
    input_ids, visual_index, images, turns, position_ids = tokens_5RL
    return PackedRows(
        input_ids,
        visual_index,
        images,
        turns,
        position_ids,
        loss_3T[0],
        loss_3T[1],
        loss_3T[2],
        plain,
    )
