"""Ten human-like answers to a question with one true answer, in VQAv2's schema."""

from __future__ import annotations

from typing import Any

import numpy as np

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_CONFIDENCE = ("yes", "yes", "yes", "maybe")


def ten_answers(answer: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return ten answers: at least eight the true one, the rest another way to write it.

    Numbers are sometimes spelled out, as people do; the metric reads both alike.
    """
    other = _NUMBER_WORDS[int(answer)] if answer.isdigit() else answer
    written = [other if rng.random() < 0.1 else answer for _ in range(10)]
    for index in range(10):
        if written.count(answer) < 8:
            written[index] = answer
    return [
        {
            "answer": text,
            "answer_confidence": str(rng.choice(_CONFIDENCE)),
            "answer_id": number,
        }
        for number, text in enumerate(written, start=1)
    ]
