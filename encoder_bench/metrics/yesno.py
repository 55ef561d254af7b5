"""Yes or no, read out of an answer strictly and GVT's own way; "yes" is the positive class."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from encoder_bench.base.errors import DataError
from encoder_bench.metrics.statistics import Measure, mean_percent, ratio

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


def yesno_accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Return how often the answer is right; one that is neither yes nor no is not.

    >>> yesno_accuracy(["Yes.", "maybe"], [["Yes."], ["No."]]).score
    50.0
    """
    pairs = zip(predictions, _truths(references), strict=True)
    return mean_percent([parse_yes_no(text) == truth for text, truth in pairs])


def yesno_precision(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Return how many of the answers read as yes are right."""
    said, truths = _said_yes(predictions), _truths(references)
    return _ratio_of(said & truths, said)


def yesno_recall(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Return how many of the true yes were answered with yes."""
    said, truths = _said_yes(predictions), _truths(references)
    return _ratio_of(said & truths, truths)


def yesno_f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Return the harmonic mean of precision and recall."""
    said, truths = _said_yes(predictions), _truths(references)
    return _ratio_of(2.0 * (said & truths), said + 1.0 * truths)


def yes_rate(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Return how many answers are read as yes."""
    return mean_percent(_said_yes(predictions).astype(np.float64))


def yesno_accuracy_gvt(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Return how often GVT's script counts the answer as correct."""
    pairs = zip(predictions, references, strict=True)
    return mean_percent([yes_no_correct_gvt(text, truths[0]) for text, truths in pairs])


def _said_yes(predictions: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([parse_yes_no(text) is True for text in predictions], dtype=bool)


def _truths(references: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """Return which samples are truly yes.

    Raises:
        DataError: a reference is neither yes nor no.
    """
    found = [parse_yes_no(texts[0]) for texts in references]
    for truth, texts in zip(found, references, strict=True):
        if truth is None:
            raise DataError(f"the answer {texts[0]!r} is neither yes nor no")
    return np.array(found, dtype=bool)


def _ratio_of(above: NDArray[np.generic], below: NDArray[np.generic]) -> Measure:
    return Measure(np.stack([above, below], axis=1).astype(np.float64), ratio)
