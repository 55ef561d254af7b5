"""Yes or no: reading the answer, strictly, and GVT's own way.

What belongs here: pure functions of text.
"""

from __future__ import annotations

import re

VERSION = 1

_YES = re.compile(r"\b(?:yes|yeah|yep|true)\b")
_NO = re.compile(r"\b(?:no|nope|not|false|isn't|doesn't|don't|aren't)\b")


def parse_yes_no(answer: str) -> bool | None:
    """Return True for yes, False for no, None where an answer is neither or both.

    The first word decides where it is yes or no; otherwise exactly one of the two must occur as
    a whole word.

    >>> [parse_yes_no(t) for t in ("Yes, a notebook", "No.", "There is not", "yes no?", "maybe")]
    [True, False, False, True, None]
    """
    text = answer.lower().replace("’", "'").strip()
    first = re.match(r"\W*(yes|no)\b", text)
    if first:
        return first.group(1) == "yes"
    yes, no = bool(_YES.search(text)), bool(_NO.search(text))
    return None if yes == no else yes


def yes_no_correct_gvt(prediction: str, truth: str) -> bool:
    """Return whether GVT's script counts an answer as correct.

    It asks whether "yes" or "no" stands anywhere in the prediction, so that "Yes, a notebook" is
    correct where the truth is No, and "yes no" always.

    Reference: TencentARC/GVT, `modules/evaluations/multiclass.py`, at commit 40532be.

    >>> yes_no_correct_gvt("Yes, a notebook", "No.")
    True
    """
    text = prediction.lower()
    return ("Yes" in truth and "yes" in text) or ("No" in truth and "no" in text)
