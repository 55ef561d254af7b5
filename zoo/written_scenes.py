"""Scenes as written pages: what the tiny language model reads instead of images.

Four layouts, from ordinary text to what a projector will be asked to make of patch tokens:

- `sentence`: size, colour, kind and place of each thing, one word per cell;
- `objects`: one cell per thing (size, colour, kind and its square of the board), shuffled;
- `centres`: a 6 by 6 board, row by row; a thing is in the square of its centre;
- `cover`: the same board; a thing is in every square whose middle it covers. Something between
  the two is what the default adapter's 36 visual tokens can come to say.

Squares are named as on a chessboard, by two letters. On a board the names are written on half of
the pages, so that place can be read from order alone as well. On three quarters of the `cover`
pages a thing's size is written in the square of its centre only, which makes things countable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from encoder_bench.base.recipes import load_task
from encoder_bench.data.readers.gvtbench import plural
from encoder_bench.data.scenes.grammar import (
    NUMBERS,
    Question,
    captions,
    counting_questions,
    identification_questions,
    named,
    visual_questions,
)
from encoder_bench.data.scenes.graph import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    KINDS,
    SIZES,
    Scene,
    Thing,
    sample_scene,
)
from zoo.reading import Page

Layout = Literal["sentence", "objects", "centres", "cover"]
LAYOUTS: tuple[Layout, ...] = ("sentence", "objects", "centres", "cover")
BOARDS: tuple[Layout, ...] = ("centres", "cover")
SQUARES = 6
"""Squares on a side of the board."""
COLUMN_NAMES, ROW_NAMES = "ijklmn", "uvwxyz"
EMPTY = "nothing"

_COUNTING, _IDENTIFICATION, _VISUAL, _CAPTIONS = 3, 3, 7, 1
_BOUND = {"what color": 3, "which side": 2}
"""Most questions of a kind that binds one thing's words together: the hardest, so asked first."""
LISTING = "List all things:"
"""Asks for everything on the page in the page's own order: the densest practice in looking up."""


OTHER_QUESTIONS = (
    "Question: {question} Short answer:",
    "Question: {question} Answer:",
    "{question}",
    "{question} Answer with a single word or phrase.",
)
OTHER_CAPTIONS = (
    "A short image description:",
    "A short image caption:",
    "Describe the image in one sentence.",
    "Write a short description of the image:",
    "Caption:",
)
_OTHER_WORDING = 0.25


@dataclass(frozen=True, slots=True)
class TaskPrompts:
    """The prompts of the four tasks; on a quarter of the pages other wordings stand instead."""

    vqa: str
    oc: str
    mci: str
    captioning: str


def shipped_prompts() -> TaskPrompts:
    """Return the prompts of the shipped task recipes."""
    names = ("vqa", "oc", "mci", "captioning")
    return TaskPrompts(**{name: load_task(name).prompt for name in names})


def written_page(
    rng: np.random.Generator, layout: Layout, prompts: TaskPrompts, *, name: str
) -> Page:
    """Return a random scene written in a layout, with questions of every task behind it."""
    scene = in_page_order(sample_scene(rng), layout, rng)
    prompts = _reworded(prompts, rng) if rng.random() < _OTHER_WORDING else prompts
    asked = [
        *_balanced(counting_questions(scene, rng), "0", _COUNTING),
        *_balanced(identification_questions(scene, rng), "No.", _IDENTIFICATION),
        *_binding_first(visual_questions(scene, rng, 2 * _VISUAL))[:_VISUAL],
    ]
    turns = [(getattr(prompts, q.task).format(question=q.text), q.answer) for q in asked]
    tasks = [q.task for q in asked]
    for text in captions(scene, rng, _CAPTIONS):
        turns.append((prompts.captioning, text))
        tasks.append("captioning")
    turns.append((LISTING, " . ".join(_described(thing) for thing in scene.things)))
    tasks.append("listing")
    return Page(name, tuple(written_cells(scene, layout, rng)), tuple(turns), tuple(tasks))


def in_page_order(scene: Scene, layout: Layout, rng: np.random.Generator) -> Scene:
    """Return the scene with its things by square on a board, else shuffled.

    Which of two things lies on top may change with it; a page does not say.
    """
    if layout in BOARDS:
        things = tuple(sorted(scene.things, key=square_of))
    else:
        things = tuple(scene.things[int(i)] for i in rng.permutation(len(scene.things)))
    return replace(scene, things=things)


def written_cells(scene: Scene, layout: Layout, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Return the cells of a scene's page: a board's squares, else as many as there are words."""
    if layout == "sentence":
        return [(word,) for thing in scene.things for word in (*_described(thing).split(), ".")]
    if layout == "objects":
        return [
            (*_named(thing, with_size=True), *_square_name(*square_of(thing)))
            for thing in scene.things
        ]
    with_names = bool(rng.random() < 0.5)
    size_everywhere = layout == "cover" and bool(rng.random() < 0.25)
    board = _board(scene, cover=layout == "cover", size_everywhere=size_everywhere)
    return [
        (*board.get((row, column), (EMPTY,)), *(_square_name(row, column) if with_names else ()))
        for row in range(SQUARES)
        for column in range(SQUARES)
    ]


def square_of(thing: Thing) -> tuple[int, int]:
    """Return the (row, column) of the square that holds a thing's centre."""
    row, column = (int(v * SQUARES / CANVAS) for v in (thing.y, thing.x))
    return row, column


def grammar_texts() -> Iterator[str]:
    """Yield texts that hold every word that the grammar and the pages use."""
    rng = np.random.default_rng(0)
    yield " ".join([*KINDS, *map(plural, KINDS), *COLOURS, *SIZES, *BACKGROUNDS, *NUMBERS, EMPTY])
    yield " ".join([*COLUMN_NAMES, *ROW_NAMES, *"0123456789", "Yes.", "No.", "yes no maybe zero"])
    yield LISTING
    for _ in range(500):
        scene = sample_scene(rng)
        yield " . ".join(_described(thing) for thing in scene.things)
        yield from captions(scene, rng)
        for question in (
            *counting_questions(scene, rng),
            *identification_questions(scene, rng),
            *visual_questions(scene, rng, 12),
        ):
            yield f"{question.text} {question.answer}"


def _board(
    scene: Scene, *, cover: bool, size_everywhere: bool
) -> dict[tuple[int, int], tuple[str, ...]]:
    """Return the words of the squares that are not empty; a later thing lies on an earlier one."""
    board: dict[tuple[int, int], tuple[str, ...]] = {}
    side = CANVAS / SQUARES
    for thing in scene.things if cover else ():
        for row in range(SQUARES):
            for column in range(SQUARES):
                across, down = (column + 0.5) * side - thing.x, (row + 0.5) * side - thing.y
                if math.hypot(across, down) <= thing.radius:
                    board[row, column] = _named(thing, with_size=size_everywhere)
    for thing in scene.things:
        square = square_of(thing)
        before = board.get(square, ()) if not cover else ()
        board[square] = (*before, *_named(thing, with_size=True))
    return board


def _described(thing: Thing) -> str:
    return " ".join((*named(thing), thing.place))


def _named(thing: Thing, *, with_size: bool) -> tuple[str, ...]:
    return named(thing) if with_size else (thing.colour, thing.kind)


def _square_name(row: int, column: int) -> tuple[str, str]:
    return COLUMN_NAMES[column], ROW_NAMES[row]


def _balanced(questions: list[Question], absent: str, number: int) -> list[Question]:
    """Return about as many questions about present kinds as about absent ones."""
    present = [q for q in questions if q.answer != absent][: (number + 1) // 2]
    return [*present, *[q for q in questions if q.answer == absent][: number - len(present)]]


def _binding_first(questions: list[Question]) -> list[Question]:
    """Return the questions with up to the most of `_BOUND` in front, else in their order."""
    front: list[Question] = []
    for kind, most in _BOUND.items():
        front += [q for q in questions if q.kind == kind][:most]
    return [*front, *[q for q in questions if q not in front]]


def _reworded(prompts: TaskPrompts, rng: np.random.Generator) -> TaskPrompts:
    question = OTHER_QUESTIONS[int(rng.integers(len(OTHER_QUESTIONS)))]
    caption = OTHER_CAPTIONS[int(rng.integers(len(OTHER_CAPTIONS)))]
    return replace(prompts, vqa=question, oc=question, mci=question, captioning=caption)
