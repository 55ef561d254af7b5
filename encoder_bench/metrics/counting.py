"""Object counting: reading a number out of an answer, strictly, and GVT's own way.

What belongs here: pure functions of text.
"""

from __future__ import annotations

import re

VERSION = 2
"""2: refusals and negative numbers are parse failures."""

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
