"""How the dialogues of a batch stand in rows: many questions behind one image prefix, kept apart.

What belongs here: the layout of token ids in padded rows, and the mask and position ids under
which a row of many questions gives the same loss and gradients as one row a question.

One image with two questions, `v` its visual tokens, `q`/`a` prompt and answer tokens:

    tokens     v v v q a a q a      mask (row attends to column)
    turn       0 0 0 1 1 1 2 2      v v v q a a q a
    position   0 1 2 3 4 5 3 4    a 1 1 1 1 1 1 . .   last answer token of question 1
                                  a 1 1 1 . . . 1 1   last answer token of question 2

Each question's positions go on from the prefix, and no question sees another, so attention and
rotary phases are those of separate sequences. Several images share a row under the same rule.

Shapes: R rows, L tokens a row, T answer tokens, B images, M visual tokens an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from encoder_bench.base.errors import DataError
from encoder_bench.mllm.batch import TokenizedTurn, TrainingBatch

_PREFIX = 0
_PADDING = -1


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch laid out for one forward pass of the language model.

    Attributes:
        input_ids: `(R, L)` text token ids; `pad_id` under visual tokens and padding.
        visual_index: `(R, L)` index into the batch's B * M visual tokens, -1 for text.
        image: `(R, L)` which image a token belongs to, -1 for padding.
        turn: `(R, L)` 0 in an image's prefix, 1, 2... in its questions.
        positions: `(R, L)` position ids.
        loss_rows: `(T,)` row of the token that predicts each answer token.
        loss_columns: `(T,)` its column.
        targets: `(T,)` the answer tokens.
        plain: every row is one plain causal sequence, so that no mask is needed.
    """

    input_ids: Tensor
    visual_index: Tensor
    image: Tensor
    turn: Tensor
    positions: Tensor
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
        length = self.image.shape[1]
        same_image = self.image[:, :, None] == self.image[:, None, :]
        in_reach = (self.turn[:, None, :] == _PREFIX) | (
            self.turn[:, :, None] == self.turn[:, None, :]
        )
        causal = torch.ones(length, length, dtype=torch.bool, device=self.image.device).tril()
        return (same_image & in_reach & causal)[:, None]

    def block_mask(self) -> Any:
        """Return the same mask as FlexAttention's `BlockMask`, None where causal is enough."""
        if self.plain:
            return None
        from torch.nn.attention.flex_attention import create_block_mask

        image, turn = self.image, self.turn

        def may_attend(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same_image = image[row, query] == image[row, key]
            in_reach = (turn[row, key] == _PREFIX) | (turn[row, query] == turn[row, key])
            return same_image & in_reach & (query >= key)

        rows, length = image.shape
        return create_block_mask(may_attend, rows, None, length, length, device=str(image.device))

    def to(self, device: torch.device | str) -> Rows:
        """Return the rows with every tensor on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in self.__dataclass_fields__
            if name != "plain"
        }
        return Rows(**moved, plain=self.plain)


def lay_out(batch: TrainingBatch, *, visual_tokens: int) -> Rows:
    """Place a batch's dialogues in rows.

    With a shared prefix, images are packed into rows of at most `batch.row_length` tokens, longest
    first; an image that is longer by itself has its own row. Without, each question has its own.

    Args:
        batch: the dialogues.
        visual_tokens: M, the visual tokens of an image; 0 for text only.

    Raises:
        DataError: one image with one question is longer than the context; names the image.
    """
    prefix_length = len(batch.prefix) + visual_tokens
    _check_context(batch, prefix_length)
    groups = [
        _Group(index, batch.prefix, dialogue.turns)
        for index, dialogue in enumerate(batch.dialogues)
    ]
    if not batch.shared_prefix:
        rows = [[replace(group, turns=(turn,))] for group in groups for turn in group.turns]
    else:
        longest = max(group.length(visual_tokens) for group in groups)
        rows = _pack(groups, visual_tokens, max(batch.row_length or 0, longest))
    return _RowBuilder(batch.pad_id, visual_tokens).build(rows)


def lay_out_candidates(
    questions: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    *,
    pad_id: int,
    prefix_length: int,
) -> Rows:
    """Place each question in a row with all its candidate answers behind it, kept apart.

    Args:
        questions: token ids of a question and of its candidates, none of them empty.
        pad_id: fills rows.
        prefix_length: tokens that stand before the question in the model's cache; positions go
            on from there.
    """
    rows = [
        [_Group(index, tuple(ids), tuple(TokenizedTurn((), tuple(reply)) for reply in replies))]
        for index, (ids, replies) in enumerate(questions)
    ]
    return _RowBuilder(pad_id, visual_tokens=0, first_position=prefix_length).build(rows)


@dataclass(frozen=True, slots=True)
class _Group:
    """An image's prefix and the questions that stand behind it."""

    image: int
    prefix: tuple[int, ...]
    turns: tuple[TokenizedTurn, ...]

    def length(self, visual_tokens: int) -> int:
        asked = sum(len(turn.prompt) + len(turn.answer) - 1 for turn in self.turns)
        return len(self.prefix) + visual_tokens + asked


def _check_context(batch: TrainingBatch, prefix_length: int) -> None:
    for dialogue in batch.dialogues:
        for turn in dialogue.turns:
            length = prefix_length + len(turn.prompt) + len(turn.answer)
            if length > batch.max_length:
                raise DataError(
                    f"image {dialogue.image_id}: a question needs {length} tokens "
                    f"({prefix_length} before it), the language model's context has "
                    f"{batch.max_length}; shorten the text or lower --visual-tokens"
                )


def _pack(groups: Sequence[_Group], visual_tokens: int, row_length: int) -> list[list[_Group]]:
    """Fill rows first-fit, longest image first; ties keep the batch's order."""
    rows: list[list[_Group]] = []
    space: list[int] = []
    for group in sorted(groups, key=lambda group: -group.length(visual_tokens)):
        needed = group.length(visual_tokens)
        for index, free in enumerate(space):
            if needed <= free:
                rows[index].append(group)
                space[index] -= needed
                break
        else:
            rows.append([group])
            space.append(row_length - needed)
    return rows


class _RowBuilder:
    """Writes groups into flat Python lists, then pads them into tensors.

    The last answer token is never fed in: nothing is predicted from it.
    """

    def __init__(self, pad_id: int, visual_tokens: int, first_position: int = 0) -> None:
        self._pad_id, self._visual_tokens = pad_id, visual_tokens
        self._first_position = first_position
        self._columns: dict[str, list[list[int]]] = {
            name: [] for name in ("input_ids", "visual_index", "image", "turn", "positions")
        }
        self._loss: tuple[list[int], list[int], list[int]] = ([], [], [])

    def build(self, rows: Sequence[Sequence[_Group]]) -> Rows:
        for groups in rows:
            for column in self._columns.values():
                column.append([])
            for group in groups:
                self._write_group(group)
        fill = {"input_ids": self._pad_id, "positions": 0, "turn": _PREFIX}
        tensors = {
            name: _padded(column, fill.get(name, _PADDING))
            for name, column in self._columns.items()
        }
        loss = [torch.tensor(values, dtype=torch.long) for values in self._loss]
        return Rows(
            **tensors,
            loss_rows=loss[0],
            loss_columns=loss[1],
            targets=loss[2],
            plain=all(len(groups) == 1 and len(groups[0].turns) == 1 for groups in rows),
        )

    def _write_group(self, group: _Group) -> None:
        visual = self._visual_tokens
        first, start = group.image * visual, self._first_position
        self._write(
            ids=[*group.prefix, *[self._pad_id] * visual],
            visual=[*[-1] * len(group.prefix), *range(first, first + visual)],
            image=group.image,
            turn=_PREFIX,
            start=start,
        )
        prefix_end = len(self._columns["turn"][-1])
        start += len(group.prefix) + visual
        for number, turn in enumerate(group.turns, start=1):
            ids = [*turn.prompt, *turn.answer[:-1]]
            self._teach(turn, prefix_end)
            self._write(
                ids=ids, visual=[-1] * len(ids), image=group.image, turn=number, start=start
            )

    def _teach(self, turn: TokenizedTurn, prefix_end: int) -> None:
        """Note which tokens predict the answer of a turn that is about to be written."""
        begin = len(self._columns["turn"][-1])
        prompt_end = begin + len(turn.prompt)
        first = prompt_end - 1 if turn.prompt else prefix_end - 1
        rows, columns, targets = self._loss
        rows += [len(self._columns["turn"]) - 1] * len(turn.answer)
        columns += [first, *range(prompt_end, prompt_end + len(turn.answer) - 1)]
        targets += turn.answer

    def _write(
        self, *, ids: list[int], visual: list[int], image: int, turn: int, start: int
    ) -> None:
        columns = self._columns
        columns["input_ids"][-1].extend(ids)
        columns["visual_index"][-1].extend(visual)
        columns["image"][-1].extend([image] * len(ids))
        columns["turn"][-1].extend([turn] * len(ids))
        columns["positions"][-1].extend(range(start, start + len(ids)))


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=torch.long)
