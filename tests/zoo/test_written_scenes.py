"""Scenes written as pages say what is in them, and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_bench.data.scenes.graph import Scene, Thing, sample_scene
from zoo.language import WORDING, held_out_pages, training_pages
from zoo.tokenizer import words_of
from zoo.written_scenes import (
    COLUMN_NAMES,
    EMPTY,
    LAYOUTS,
    ROW_NAMES,
    Layout,
    grammar_texts,
    shipped_prompts,
    written_cells,
    written_page,
)

PROMPTS = shipped_prompts()
CUP = Thing("ring", "red", "large", x=20.0, y=44.0, radius=9.0, hidden=0.2)
DOT = Thing("circle", "blue", "small", x=60.0, y=4.0, radius=5.0)
SCENE = Scene("plain", 0, (CUP, DOT))


def cells_without_names(layout: Layout, seed: int) -> list[tuple[str, ...]]:
    names = {*COLUMN_NAMES, *ROW_NAMES}
    cells = written_cells(SCENE, layout, np.random.default_rng(seed))
    return [tuple(word for word in cell if word not in names) for cell in cells]


@pytest.mark.parametrize("seed", range(4))
def test_centres_stand_in_their_squares(seed: int) -> None:
    cells = cells_without_names("centres", seed)
    filled = {index: cell for index, cell in enumerate(cells) if cell != (EMPTY,)}
    # (20, 44) lies in column 1 of row 3, (60, 4) in column 5 of row 0; squares are 12 px wide.
    assert len(cells) == 36
    assert filled == {3 * 6 + 1: ("large", "red", "hidden", "ring"), 5: ("small", "blue", "circle")}


@pytest.mark.parametrize("seed", range(4))
def test_a_covered_square_has_its_middle_inside_the_thing(seed: int) -> None:
    cells = cells_without_names("cover", seed)
    red = {divmod(index, 6) for index, cell in enumerate(cells) if "red" in cell}
    # middles at distance 9 or less from (20, 44): (18, 42), (18, 54) is 10.2 away, (30, 42) 10.2.
    assert red == {(3, 1)}


def test_objects_have_one_cell_each_with_the_name_of_its_square() -> None:
    cells = written_cells(SCENE, "objects", np.random.default_rng(0))
    assert sorted(cells) == [
        ("large", "red", "hidden", "ring", COLUMN_NAMES[1], ROW_NAMES[3]),
        ("small", "blue", "circle", COLUMN_NAMES[5], ROW_NAMES[0]),
    ]


def test_a_sentence_is_one_word_a_cell() -> None:
    cells = written_cells(SCENE, "sentence", np.random.default_rng(0))
    assert all(len(cell) == 1 for cell in cells)
    assert Counter(word for (word,) in cells)["red"] == 1


@given(seed=st.integers(0, 10_000), layout=st.sampled_from(LAYOUTS))
@settings(max_examples=25, deadline=None)
def test_every_page_answers_its_counting_questions(seed: int, layout: Layout) -> None:
    scene = sample_scene(np.random.default_rng(seed))
    page = written_page(np.random.default_rng(seed), layout, PROMPTS, name="page")
    assert len(page.tasks) == len(page.turns)
    assert set(page.tasks) >= {"oc", "mci", "captioning"}
    if layout in ("centres", "objects"):
        words = [word for cell in page.cells for word in cell]
        for kind in {thing.kind for thing in scene.things}:
            assert words.count(kind) == scene.count(kind)


def test_every_word_of_the_pages_is_a_token() -> None:
    known = set(words_of([*grammar_texts(), *WORDING]))
    pages = [
        page
        for i, layout in enumerate(LAYOUTS)
        for page in training_pages(i, layout, 4, PROMPTS, seed=0)
    ]
    texts = [" ".join(word for cell in page.cells for word in cell) for page in pages]
    texts += [f"{prompt} {answer}" for page in pages for prompt, answer in page.turns]
    assert set(words_of(texts)) <= known


def test_steps_repeat_and_held_out_pages_are_not_among_them() -> None:
    first = training_pages(3, "objects", 4, PROMPTS, seed=0)
    assert first == training_pages(3, "objects", 4, PROMPTS, seed=0)
    assert first != training_pages(3, "objects", 4, PROMPTS, seed=1)
    trained = {
        page.cells
        for layout in LAYOUTS
        for step in range(2)
        for page in training_pages(step, layout, 8, PROMPTS, seed=0)
    }
    held_out = {page.cells for layout in LAYOUTS for page in held_out_pages(layout, PROMPTS, 8)}
    assert not trained & held_out


def test_most_pages_ask_in_the_words_of_the_task_recipes() -> None:
    pages = [p for step in range(4) for p in training_pages(step, "objects", 8, PROMPTS, seed=0)]
    own = [page.turns[-2][0] == PROMPTS.captioning for page in pages]
    assert 0.5 < sum(own) / len(own) < 1
