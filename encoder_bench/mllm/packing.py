"""How the dialogues of a batch stand in rows: many questions behind one image prefix, kept apart.

What belongs here: tokenised dialogues, their layout in padded rows, and the mask and position ids
under which a row of many questions gives the same loss and gradients as one row a question.

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
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from encoder_bench.errors import DataError

if TYPE_CHECKING:
    from encoder_bench.mllm.language import LanguageModel

_PREFIX = 0
_PADDING = -1


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

    def to(self, device: torch.device | str) -> Rows:
        """Return the rows with every tensor on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in self.__dataclass_fields__
            if name != "plain"
        }
        return Rows(**moved, plain=self.plain)


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
        dialogues=tuple(
            tokenize_dialogue(language, item, image=images is not None) for item in items
        ),
        prefix=tuple(language.prefix_ids(image=images is not None)),
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


def lay_out(batch: TrainingBatch, *, visual_tokens: int, row_length: int | None = None) -> Rows:
    """Place a batch's dialogues in rows.

    With a shared prefix, images are packed into rows of at most `row_length` tokens, longest
    first; without, each question has its own row.

    Args:
        batch: the dialogues.
        visual_tokens: M, the visual tokens of an image; 0 for text only.
        row_length: longest row, in tokens; by default the longest image's length, which packs
            without making any row longer. An image that is longer by itself has its own row.

    Raises:
        DataError: one image with one question is longer than the context; names the image.
    """
    prefix_length = len(batch.prefix) + visual_tokens
    _check_context(batch, prefix_length)
    groups = [_Group(index, dialogue.turns) for index, dialogue in enumerate(batch.dialogues)]
    if not batch.shared_prefix:
        groups = [_Group(group.image, (turn,)) for group in groups for turn in group.turns]
        rows = [[group] for group in groups]
    else:
        longest = max(group.length(prefix_length) for group in groups)
        rows = _pack(groups, prefix_length, max(row_length or 0, longest))
    builder = _RowBuilder(batch, visual_tokens)
    return builder.build(rows)


@dataclass(frozen=True, slots=True)
class _Group:
    """An image's prefix and the questions that stand behind it."""

    image: int
    turns: tuple[TokenizedTurn, ...]

    def length(self, prefix_length: int) -> int:
        return prefix_length + sum(len(turn.prompt) + len(turn.answer) - 1 for turn in self.turns)


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


def _pack(groups: Sequence[_Group], prefix_length: int, row_length: int) -> list[list[_Group]]:
    """Fill rows first-fit, longest image first; ties keep the batch's order."""
    rows: list[list[_Group]] = []
    space: list[int] = []
    for group in sorted(groups, key=lambda group: -group.length(prefix_length)):
        needed = group.length(prefix_length)
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

    def __init__(self, batch: TrainingBatch, visual_tokens: int) -> None:
        self._batch, self._visual_tokens = batch, visual_tokens
        self._columns: dict[str, list[list[int]]] = {
            name: [] for name in ("input_ids", "visual_index", "image", "turn", "positions")
        }
        self._loss: tuple[list[int], list[int], list[int]] = ([], [], [])

    def build(self, rows: Sequence[Sequence[_Group]]) -> Rows:
        for groups in rows:
            for column in self._columns.values():
                column.append([])
            for group in groups:
                self._write_prefix(group)
                start = len(self._columns["turn"][-1])
                for number, turn in enumerate(group.turns, start=1):
                    self._write_turn(group.image, number, turn, prefix_end=start)
        fill = {"input_ids": self._batch.pad_id, "positions": 0, "turn": _PREFIX}
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

    def _write_prefix(self, group: _Group) -> None:
        text, visual = self._batch.prefix, self._visual_tokens
        first = group.image * visual
        self._write(
            ids=[*text, *[self._batch.pad_id] * visual],
            visual=[*[-1] * len(text), *range(first, first + visual)],
            image=group.image,
            turn=_PREFIX,
            start=0,
        )

    def _write_turn(self, image: int, number: int, turn: TokenizedTurn, prefix_end: int) -> None:
        row = self._columns["turn"]
        begin = len(row[-1])
        prefix_length = len(self._batch.prefix) + self._visual_tokens
        ids = [*turn.prompt, *turn.answer[:-1]]
        self._write(ids=ids, visual=[-1] * len(ids), image=image, turn=number, start=prefix_length)
        first = begin + len(turn.prompt) - 1 if turn.prompt else prefix_end - 1
        columns = [first, *range(begin + len(turn.prompt), begin + len(ids))]
        rows, loss_columns, targets = self._loss
        rows += [len(row) - 1] * len(turn.answer)
        loss_columns += columns
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
