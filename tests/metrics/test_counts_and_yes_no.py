"""Reading counts and yes or no out of answers, strictly and GVT's way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder_bench.metrics.short_answers import (
    parse_count,
    parse_count_gvt,
    parse_yes_no,
    yesno_accuracy_gvt,
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
        ("1,000", 1000),
        ("There are 1,000,000 of them", 1_000_000),
        ("1,000,00", None),
        ("0,5", None),
        ("2.0", 2),
        ("2.00.", 2),
        ("2.05", None),
        ("1.2.0", None),
        ("nobody", 0),
        ("No one.", 0),
        ("There aren't any", 0),
        ("there are not any dogs", 0),
        ("The image does not show any dogs", 0),
        ("I don't see any", 0),
        ("There isn't one.", 0),
        ("I don't see a single one", 0),
        ("I do not think there is one", 0),
        ("not one dog", 0),
        ("There are not two dogs", None),
        ("not only one", None),
        ("There are 3, not 2", None),
        ("There are two cats, but not all two are visible.", 2),
        ("There are 5 birds, though not all five are flying.", 5),
        ("There are 6 chairs (not 6 tables).", 6),
        ("If I am not mistaken 3 dogs.", 3),
        ("There isn't no dog.", 0),
        ("I don't see even a single one.", 0),
        ("There isn't a single dog in the image.", 0),
        ("I don't think there are 2", None),
        ("There are 2 dogs that are not in the car", 2),
        ("two people and a dog", None),
        ("3 dogs and several cats", None),
        ("one dog with a ball", 1),
        ("at least 3", None),
        ("over 20", None),
        ("up to five", None),
        ("There are 2 cats under the table.", 2),
        ("3 birds flying over the water", 3),
        ("Two people walking up to the door", 2),
        ("There is no picture on the wall", 0),
        ("There is no image", None),
        ("There is no image in your message.", None),
        ("There is no image with your question", None),
        ("No image at all", None),
        ("no images were attached", None),
        ("There are no pictures hanging there", 0),
        ("more than two", None),
        ("3 or more", None),
        ("10+", None),
        ("3+", None),
        ("not sure", None),
        ("It's hard to tell, maybe 3", None),
        ("The image does not show that", None),
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
    [
        ("9" * 5000, 10**18),
        ("2", 2),
        ("two or three", 2),
        ("phone", 1),
        ("Two", 0),
        ("nine", 0),
        ("nive", 9),
        ("", 0),
    ],
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
        ("I don't know", None),
        ("I\u2019m not sure", None),
        ("Not sure.", None),
        ("No idea", None),
        ("No, I don't know", None),
        ("I cannot tell", None),
        ("There are none.", False),
        ("Nobody is there", False),
        ("No one is there.", False),
        ("No, I cannot see a dog", False),
        ("No, there isn't any", False),
        ("The image does not show a dog", False),
        ("The image does not show this clearly", None),
        ("No, but yes", None),
        ("yes no", None),
        ("Yes or no", None),
        ("Yes. No.", None),
        ("Yes, there are no other dogs", True),
        ("Yes, no doubt", True),
        ("Yes, a dog, but no cat", True),
    ],
)
def test_strict_yes_no(answer: str, read: bool | None) -> None:
    assert parse_yes_no(answer) is read


def test_gvt_yes_no_finds_no_in_notebook() -> None:
    # TencentARC/GVT multiclass.py.
    assert yesno_accuracy_gvt("Yes, a notebook", ["No."])
    assert yesno_accuracy_gvt("yes no", ["Yes."])
    assert yesno_accuracy_gvt("yes no", ["No."])
    assert not yesno_accuracy_gvt("yes", ["No."])


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_is_read_and_refusals_are_refused_by_both(text: str) -> None:
    assert isinstance(parse_count_gvt(text), int)
    for reader in (parse_count, parse_yes_no):
        reader(text)
        assert reader(f"I am not sure {text}") is None
