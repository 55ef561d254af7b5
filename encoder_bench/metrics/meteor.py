"""METEOR 1.5: its authors' Java program counts by image, and the score follows from the sums.

Reference: Denkowski and Lavie 2014, "Meteor Universal"; the English parameters of version 1.5.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from encoder_bench.base.errors import MissingDependencyError
from encoder_bench.metrics.java import known_rows, run_java, scorer_folder
from encoder_bench.metrics.ptb import ptb_tokenize
from encoder_bench.metrics.statistics import Measure, References

COUNTS = 23
"""Lengths (4), matches of 4 stages (16), chunks, matched words of caption and of reference."""
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
_COMMAND = ("-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")


def meteor(predictions: Sequence[str], references: References) -> Measure:
    """Return METEOR 1.5, against the reference that it finds best; raises as `meteor_counts`."""
    return Measure(known_rows(meteor_counts, predictions, references), meteor_score)


def meteor_counts(predictions: Sequence[str], references: References) -> NDArray[np.float64]:
    """Return `(n, 23)` counts, one row per caption.

    A caption that equals its reference counts no chunk, as METEOR's own sum over a corpus has it.

    Raises:
        MissingDependencyError: no Java, or the program fails or takes too long.
    """
    lines = [
        " ||| ".join(["SCORE", *map(_plain, truths), _plain(text)])
        for text, truths in zip(predictions, references, strict=True)
    ]
    answers = run_java(
        "METEOR", _COMMAND, scorer_folder("meteor"), heap=2048, seconds=120 + 0.2 * len(lines),
        text="".join(f"{line}\n" for line in lines),
    )  # fmt: skip
    rows = [[float(word) for word in line.split()] for line in answers]
    if len(rows) != len(lines) or any(len(row) != COUNTS for row in rows):
        raise MissingDependencyError("METEOR answered in a form that is not version 1.5's")
    counts = np.asarray(rows, dtype=np.float64)
    length, reference, chunks, found, matched = counts[:, [0, 1, 20, 21, 22]].T
    counts[(length == found) & (reference == matched) & (chunks == 1), 20] = 0.0
    return counts


def meteor_score(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return METEOR in percent, from `(R, 23)` sums of `meteor_counts`."""
    length, reference, length_f, reference_f = sums[:, :4].T
    stages = sums[:, 4:20].reshape(-1, 4, 4)
    chunks, matches = sums[:, 20], (sums[:, 21] + sums[:, 22]) / 2
    weighted = (stages * _STAGE_WEIGHTS[None, :, None]).sum(axis=1)
    content, function = _DELTA, 1.0 - _DELTA
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = (content * weighted[:, 0] + function * weighted[:, 2]) / (
            content * (length - length_f) + function * length_f
        )
        recall = (content * weighted[:, 1] + function * weighted[:, 3]) / (
            content * (reference - reference_f) + function * reference_f
        )
        mean = 1.0 / ((1.0 - _ALPHA) / precision + _ALPHA / recall)
        penalty = _GAMMA * np.where(matches > 0, chunks / matches, 0.0) ** _BETA
    return np.asarray(100.0 * np.nan_to_num(mean * (1.0 - penalty)))


def _plain(text: str) -> str:
    """Return a caption's tokens without the separator of METEOR's protocol."""
    return ptb_tokenize(text).replace("|||", "").replace("  ", " ")
