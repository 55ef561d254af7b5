"""VQA accuracy against values worked out by hand from the official code's rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_bench.metrics.vqa import (
    normalise,
    vqa_accuracy,
    vqa_accuracy_gvt,
    vqa_accuracy_normalised,
    vqa_accuracy_pre2021,
)


@pytest.mark.parametrize(
    ("matches", "score"), [(0, 0.0), (1, 30.0), (2, 60.0), (3, 90.0), (4, 100.0), (10, 100.0)]
)
def test_leave_one_out_consensus(matches: int, score: float) -> None:
    # vqaEval.py: mean over ten subsets of nine of min(matches / 3, 1).
    answers = ["red"] * matches + [f"other {i}" for i in range(10 - matches)]
    assert vqa_accuracy("red", answers) == pytest.approx(score)


def test_nothing_is_normalised_where_all_agree() -> None:
    # GT-Vision-Lab/VQA issue 14: intended.
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0.0
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 100.0
    assert vqa_accuracy_normalised("Yes", ["yes"] * 10) == 100.0
    assert vqa_accuracy_pre2021("Yes", ["yes"] * 10) == 100.0


def test_quirks_that_parity_needs() -> None:
    assert vqa_accuracy("", ["a"] * 9 + ["b"]) == 100.0  # "a" is an article, so it is empty
    assert vqa_accuracy("0", ["none"] * 9 + ["b"]) == 100.0
    assert vqa_accuracy("\tred\n", ["red"] * 10) == 100.0


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Two dogs.", "2 dogs"),
        ("isnt", "isn't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("1,000", "1000"),
        ("a, b", "b"),
        ("red/blue", "red blue"),
        ("3.5", "3.5"),
        ("u.s.a", "usa"),
        ("t-shirt", "t shirt"),
        ("what?!", "what"),
        ("ten", "10"),
        ("twas", "'twas"),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert normalise(text) == normal


def test_only_the_first_32_periods_go() -> None:
    # re.UNICODE (32) is passed where the count belongs.
    assert normalise("." * 40) == "." * 8


def test_gvt_takes_a_human_answer_inside_the_prediction() -> None:
    answers = ["red"] * 10
    assert vqa_accuracy("a red sign", answers) == 0.0
    assert vqa_accuracy_gvt("a red sign", answers) == 100.0
    assert vqa_accuracy_gvt("blue", answers) == 0.0


@given(st.text(max_size=12), st.lists(st.text(max_size=6), min_size=10, max_size=10))
@settings(max_examples=200, deadline=None)
def test_scores_are_one_of_five_whatever_the_text(prediction: str, answers: list[str]) -> None:
    for score in (vqa_accuracy, vqa_accuracy_normalised, vqa_accuracy_pre2021):
        value = round(score(prediction, answers), 6)
        assert value in (0.0, 30.0, 60.0, 90.0, 100.0)


@given(
    st.lists(st.sampled_from(["yes", "no", "two", "2", "the cat", "cat"]), min_size=10, max_size=10)
)
@settings(max_examples=100, deadline=None)
def test_the_order_of_humans_does_not_matter(answers: list[str]) -> None:
    assert vqa_accuracy("cat", answers) == pytest.approx(vqa_accuracy("cat", sorted(answers)))
