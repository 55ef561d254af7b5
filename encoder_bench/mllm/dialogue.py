"""Questions and conversations as token ids, with the places of images and what the loss covers.

Separate questions on an image share what stands before them and do not see each other; the turns
of a conversation follow each other in one sequence. `v` are visual tokens, `q`/`a` prompt and
answer, a capital letter is taught:

    two questions     p p v v v q A A q A A      a conversation    p v v v q A A q A A
    turn              0 0 0 0 0 1 1 1 2 2 2      turn              0 0 0 0 0 0 0 0 0 0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from encoder_bench.base.errors import DataError
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.sample import IMAGE, Conversation, Sample, Turn
from encoder_bench.mllm.language import Before, LanguageModel


@dataclass(frozen=True, slots=True)
class ImageDialogue:
    """One image's training questions: `turns` holds (prompt, answer), each asked on its own."""

    image_id: int | str
    turns: tuple[tuple[str, str], ...]


def asked_about(samples: Sequence[Sample], tasks: Mapping[str, TaskRecipe]) -> ImageDialogue:
    """Return what training asks about one image: its samples, with their tasks' wording."""
    turns = tuple(
        (tasks[s.task].fill_prompt(s.question), tasks[s.task].fill_answer(s.target))
        for s in samples
    )
    return ImageDialogue(samples[0].image_id, turns)


class Segment(NamedTuple):
    """A stretch of a sequence.

    Attributes:
        ids: its tokens; None where the visual tokens of the sequence's next image stand.
        taught: whether the loss covers it: an answer and its end token.
        turn: 0 is seen by all that follows; 1, 2... follow turn 0 and are seen by themselves only.
    """

    ids: tuple[int, ...] | None
    taught: bool = False
    turn: int = 0


class TokenizedDialogue(NamedTuple):
    """Segments in order; `label`, the image or the row, and `samples`' ids are for errors."""

    label: str
    segments: tuple[Segment, ...]
    samples: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """How many images it shows."""
        return sum(segment.ids is None for segment in self.segments)

    @property
    def answer_tokens(self) -> int:
        """How many tokens the loss covers."""
        return sum(len(segment.ids or ()) for segment in self.segments if segment.taught)

    def length(self, visual_tokens: int) -> int:
        """Return the tokens of a row that holds it."""
        turns = {segment.turn for segment in self.segments if segment.taught}
        return sum(_length(segment, visual_tokens) for segment in self.segments) - len(turns)

    def longest(self, visual_tokens: int) -> tuple[int, int]:
        """Return the tokens of its longest sequence, the last answer's end counted, and of turn 0.

        Only this must fit into the context: separate questions do not add up.
        """
        lengths = {0: 0}
        for segment in self.segments:
            lengths[segment.turn] = lengths.get(segment.turn, 0) + _length(segment, visual_tokens)
        shared = lengths.pop(0)
        return shared + max(lengths.values(), default=0), shared

    def apart(self) -> list[TokenizedDialogue]:
        """Return each separate question with what stands before it; a conversation as it is."""
        turns = sorted({segment.turn for segment in self.segments} - {0}) or [0]
        return [
            self._replace(segments=tuple(s for s in self.segments if s.turn in (0, turn)))
            for turn in turns
        ]

    def cut(self, max_length: int, visual_tokens: int) -> TokenizedDialogue | None:
        """Return what fits into so many tokens; None if no answer does.

        Of a conversation that is its first turns, with their images; of separate questions it is
        each that fits by itself.
        """
        apart = [each for each in self.apart() if each.longest(visual_tokens)[0] <= max_length]
        if kept := {segment.turn for each in apart for segment in each.segments} - {0}:
            return self._replace(segments=tuple(s for s in self.segments if s.turn in kept | {0}))
        total = end = 0
        for place, segment in enumerate(self.segments, start=1):
            total += _length(segment, visual_tokens)
            if total > max_length:
                break
            end = place if segment.taught else end
        return self._replace(segments=self.segments[:end]) if end else None


def _length(segment: Segment, visual_tokens: int) -> int:
    return visual_tokens if segment.ids is None else len(segment.ids)


def tokenize_dialogues(
    language: LanguageModel, items: Sequence[ImageDialogue | Conversation], *, image: bool
) -> tuple[TokenizedDialogue, ...]:
    """Return token ids of questions or conversations.

    `image` says whether questions have their image before them; a conversation says itself.

    Raises:
        DataError: no question, an empty answer, or not as many images as a conversation's texts
            mark; names the image or the row.
    """
    return tuple(
        _questions(language, item, image=image)
        if isinstance(item, ImageDialogue)
        else _conversation(language, item)
        for item in items
    )


def _questions(language: LanguageModel, item: ImageDialogue, *, image: bool) -> TokenizedDialogue:
    label = f"image {item.image_id}"
    if not item.turns:
        raise DataError(f"{label}: no question to train on")
    segments = [Segment(tuple(language.prefix_ids(image=image))), *[Segment(None)] * image]
    for number, (prompt, answer) in enumerate(item.turns, start=1):
        if not answer.strip():
            raise DataError(f"{label}: empty answer to {prompt!r}")
        question, reply = language.turn_ids(prompt, answer, image=image)
        segments.append(Segment(tuple(question), turn=number))
        segments.append(Segment(tuple(reply), taught=True, turn=number))
    return TokenizedDialogue(label, tuple(segments))


def _conversation(language: LanguageModel, row: Conversation) -> TokenizedDialogue:
    if not row.turns or not all(turn.assistant.strip() for turn in row.turns):
        raise DataError(f"row {row.row_id}: no turn, or an empty answer")
    dialogue = TokenizedDialogue(f"row {row.row_id}", tokenize_turns(language, row.turns))
    if dialogue.images != len(row.images):
        raise DataError(
            f"row {row.row_id}: {len(row.images)} images, but its texts mark {dialogue.images}"
        )
    return dialogue


def tokenize_turns(language: LanguageModel, turns: Sequence[Turn]) -> tuple[Segment, ...]:
    """Return a conversation as the model reads it, up to the last answer's end token.

    The ids are those of the tokenizer's own chat template on the whole conversation, where there is
    one. Each `IMAGE` in a user's text, with the line break after it that LLaVA's files have,
    becomes an image between the recipe's `image_prefix` and `image_suffix`. Texts are stripped.
    """
    template, settings = language.template, language.settings
    segments: list[Segment] = []
    for number, turn in enumerate(turns):
        first, *others = turn.user.strip().split(IMAGE)
        texts = [first, *(settings.image_suffix + text.removeprefix("\n") for text in others)]
        texts[:-1] = [text + settings.image_prefix for text in texts[:-1]]
        texts[0] = (template.between if number else template.head) + texts[0]
        after: Before = "answer" if number else "nothing"
        for text in texts[:-1]:
            segments += [Segment(tuple(language.encode(text, after=after))), Segment(None)]
            after = "image"
        context, reply = language.answered_ids(
            texts[-1] + template.tail, turn.assistant.strip(), after=after
        )
        segments += [Segment(tuple(context)), Segment(tuple(reply), taught=True)]
    return tuple(segments)
