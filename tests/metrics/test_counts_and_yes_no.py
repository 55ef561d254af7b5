"""Reading counts and yes or no out of answers, strictly and GVT's way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder_bench.metrics.short_answers import (
    parse_count,
    parse_count_gvt,
    parse_yes_no,
    yes_no_correct_gvt,
)


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ("3", 3),
        ("Three.", 3),
        ("There are NINE of them", 9),
        ("twenty-one", 21),
        ("twenty one", 21),
        ("one hundred", 100),
        ("no dogs", 0),
        ("None", 0),
        ("zero", 0),
        ("2 dogs, 2 in all", 2),
        ("phone", None),
        ("someone", None),
        ("2 or 3", None),
        ("3.5", None),
        ("1,000", None),
        ("I cannot tell", None),
        ("", None),
        ("a lot", None),
        ("3rd", None),
        ("I have no idea", None),
        ("No one can tell", None),
        ("There is no way to know", None),
        ("Sorry, I can\u2019t count them; one?", None),
        ("It is not possible to say", None),
        ("-3", None),
        ("minus three", None),
        ("2-3", None),
        ("no, there are none", 0),
        ("there is no dog, 0 in all", 0),
        ("a dog and no cat", 0),
        ("ninety-nine", 99),
        ("hundred", 100),
        ("\u0663", 3),
        ("9" * 5000, None),
        ("1" + " dog" * 300_000, 1),
    ],
)
def test_strict_counts(answer: str, count: int | None) -> None:
    assert parse_count(answer) == count


@given(st.integers(0, 10_000))
def test_every_number_reads_as_itself(number: int) -> None:
    assert parse_count(f"I see {number} of them.") == number


@pytest.mark.parametrize(
    ("answer", "count"),
    [("2", 2), ("two or three", 2), ("phone", 1), ("Two", 0), ("nine", 0), ("nive", 9), ("", 0)],
)
def test_gvt_counts(answer: str, count: int) -> None:
    # TencentARC/GVT count.py: words replaced anywhere, "nive" for nine, first digits, else 0.
    assert parse_count_gvt(answer) == count


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Yes.", True),
        ("yes, a notebook", True),
        ("NO", False),
        ("No, there is not", False),
        ("There isn't any", False),
        ("It does not exist", False),
        ("maybe", None),
        ("", None),
        ("a notebook", None),
        ("it is true, not false", None),
    ],
)
def test_strict_yes_no(answer: str, read: bool | None) -> None:
    assert parse_yes_no(answer) is read


def test_gvt_yes_no_finds_no_in_notebook() -> None:
    # TencentARC/GVT multiclass.py.
    assert yes_no_correct_gvt("Yes, a notebook", "No.")
    assert yes_no_correct_gvt("yes no", "Yes.")
    assert yes_no_correct_gvt("yes no", "No.")
    assert not yes_no_correct_gvt("yes", "No.")
