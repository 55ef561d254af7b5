"""Object counting: a number read out of an answer, strictly and GVT's own way."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from encoder_bench.base.errors import DataError
from encoder_bench.metrics.statistics import Measure, mean_percent, plain_ratio

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def _words() -> dict[str, int]:
    table = {word: number for number, word in enumerate(_UNITS)}
    for index, ten in enumerate(_TENS, start=2):
        table[ten] = 10 * index
        for unit in range(1, 10):
            table[f"{ten} {_UNITS[unit]}"] = 10 * index + unit
    return table | {"a hundred": 100, "one hundred": 100, "hundred": 100, "no": 0, "none": 0}


_VALUES = _words()
_ANY = re.compile(
    r"(?<![\w.,])\d+(?![\w]|[.,]\d)|\b(?:"
    + "|".join(sorted(map(re.escape, _VALUES), key=len, reverse=True))
    + r")\b"
)
_REFUSAL = re.compile(
    r"\b(?:no (?:idea|clue|way|one|answer|information|image|picture)"
    r"|not (?:sure|able|possible|clear|certain|enough|known)"
    r"|(?:do|does|did)(?:n't| not) (?:know|say|show|tell)"
    r"|cannot|can't|can not|couldn't|could not|unable|unknown|unclear|uncertain|unsure|impossible"
    r"|sorry)\b"
)
"""What makes an answer a refusal, whatever else it says; some of it holds "no" or "one"."""
_NEGATIVE = re.compile(r"(?<![\w.,])[-\u2212]\d|\b(?:minus|negative) ")


def parse_count(answer: str) -> int | None:
    """Return the number that an answer gives, or None where it gives none or several.

    Digits or number words to a hundred, as whole words, in any case; "no", "none" and "zero" are
    0. The same number twice is one number; a refusal is none, and neither is a negative number.

    >>> [parse_count(t) for t in ("Nine.", "There are 3 dogs", "a phone", "none", "2 or 3")]
    [9, 3, None, 0, None]
    >>> [parse_count(t) for t in ("I have no idea", "no dogs", "I cannot see any", "-3")]
    [None, 0, None, None]
    """
    text = " ".join(answer.lower().replace("\u2019", "'").split())
    if _REFUSAL.search(text) or _NEGATIVE.search(text):
        return None
    words = _ANY.findall(" ".join(text.replace("-", " ").split()))
    found = {_VALUES[word] if word in _VALUES else int(word) for word in words if len(word) < 20}
    return found.pop() if len(found) == 1 else None


_GVT_WORDS = {"none": 0} | {word: number for number, word in enumerate(_UNITS[:9]) if number}
_GVT_WORDS |= {"nive": 9}  # the script's own spelling of nine
_DIGITS = re.compile(r"\d+")


def parse_count_gvt(prediction: str) -> int:
    """Return the number that GVT's script reads out of an answer.

    It replaces number words anywhere, inside other words too ("phone" holds "one"), misspells
    nine, minds the case, takes the first digits, and 0 where there are none.

    Reference: TencentARC/GVT, `modules/evaluations/count.py`, at commit 40532be.

    >>> [parse_count_gvt(t) for t in ("a phone", "Two", "nine", "two or three")]
    [1, 0, 0, 2]
    """
    for word, number in _GVT_WORDS.items():
        prediction = prediction.replace(word, str(number))
    digits = _DIGITS.search(prediction)
    return int(digits.group()) if digits else 0


def counting_accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Return how often the one number in the answer is the true one.

    >>> counting_accuracy(["nine", "2 or 3"], [["9"], ["2"]]).score
    50.0
    """
    guesses = [parse_count(text) for text in predictions]
    return mean_percent([g == t for g, t in zip(guesses, _truths(references), strict=True)])


def counting_error(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Return the mean absolute error over the answers that can be parsed.

    >>> counting_error(["nine", "no idea"], [["7"], ["2"]]).score
    2.0
    """
    return _mean_error([parse_count(text) for text in predictions], references)


def counting_accuracy_gvt(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Measure:
    """Return how often the number that GVT's script reads is the true one."""
    guesses = [parse_count_gvt(text) for text in predictions]
    return mean_percent([g == t for g, t in zip(guesses, _truths(references), strict=True)])


def counting_error_gvt(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Return the mean absolute error of the numbers that GVT's script reads, over all answers."""
    return _mean_error([parse_count_gvt(text) for text in predictions], references)


def _mean_error(guesses: Sequence[int | None], references: Sequence[Sequence[str]]) -> Measure:
    pairs = zip(guesses, _truths(references), strict=True)
    rows = [(0.0, 0.0) if g is None else (float(abs(g - t)), 1.0) for g, t in pairs]
    return Measure(np.asarray(rows).reshape(-1, 2), plain_ratio)


def _truths(references: Sequence[Sequence[str]]) -> list[int]:
    """Return the true counts.

    Raises:
        DataError: a reference is no number.
    """
    numbers = [parse_count(texts[0]) for texts in references]
    for number, texts in zip(numbers, references, strict=True):
        if number is None:
            raise DataError(f"the answer {texts[0]!r} is no count")
    return [number for number in numbers if number is not None]
