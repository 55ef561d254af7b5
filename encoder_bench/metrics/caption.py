"""Caption metrics: CIDEr-D, BLEU and ROUGE-L, without Java.

What belongs here: numbers an image, or sums that a corpus metric is a function of. BLEU and ROUGE
are pycocoevalcap's own scorers, CIDEr-D is `cider.py`; the tokenizer is `ptb.py`, which equals the
Java one on captions.

Reference: Vedantam et al. 2015 (arXiv 1411.5726); Papineni et al. 2002; Lin 2004; coco-caption.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from encoder_bench.metrics.cider import cider_d
from encoder_bench.metrics.ptb import ptb_tokenize
from encoder_bench.metrics.statistics import Measure, mean_percent

BLEU_ORDER = 4

Captions = Sequence[Sequence[str]]
_Tokens = dict[int, list[str]]


def tokenized(predictions: Sequence[str], references: Captions) -> tuple[_Tokens, _Tokens]:
    """Return predictions and references as pycocoevalcap takes them, one key an image."""
    guesses = {i: [ptb_tokenize(text)] for i, text in enumerate(predictions)}
    truths = {i: [ptb_tokenize(t) for t in texts] for i, texts in enumerate(references)}
    return guesses, truths


def cider(predictions: Sequence[str], references: Captions) -> NDArray[np.float64]:
    """Return the CIDEr-D of each image, in percent; their mean is the corpus score.

    Document frequencies are those of the references given, so that a subset of a split scores
    higher than the split: compare runs on the same samples only.
    """
    return cider_full_idf(predictions, references, None)


def cider_full_idf(
    predictions: Sequence[str], references: Captions, corpus: Captions | None
) -> NDArray[np.float64]:
    """Return each image's CIDEr-D, in percent, with document frequencies of a whole split.

    So a subset scores what it adds to the split's own score, instead of more.

    Args:
        predictions: a caption an image.
        references: the same images' human captions.
        corpus: the human captions of every image of the split, those images among them.
    """
    split = None if corpus is None else [[ptb_tokenize(t) for t in texts] for texts in corpus]
    return 100.0 * cider_d(
        [ptb_tokenize(text) for text in predictions],
        [[ptb_tokenize(t) for t in texts] for texts in references],
        split,
    )


def rouge_l(predictions: Sequence[str], references: Captions) -> NDArray[np.float64]:
    """Return the ROUGE-L of each image (F with beta 1.2, best over references), in percent."""
    from pycocoevalcap.rouge.rouge import Rouge

    guesses, truths = tokenized(predictions, references)
    _, scores = Rouge().compute_score(truths, guesses)
    return np.asarray(scores, dtype=np.float64) * 100.0


def bleu_sums(predictions: Sequence[str], references: Captions) -> NDArray[np.float64]:
    """Return `(n, 10)` counts by image that corpus BLEU is a function of.

    Columns: matches of order 1 to 4, n-grams of order 1 to 4, length, and the reference length
    that is closest to it.
    """
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    guesses, truths = tokenized(predictions, references)
    scorer = BleuScorer(n=BLEU_ORDER)
    for key, guess in guesses.items():
        scorer += (guess[0], truths[key])
    rows = []
    with contextlib.redirect_stdout(io.StringIO()):
        for part in scorer.ctest:
            length = part["testlen"]
            closest = min((abs(r - length), r) for r in part["reflen"])[1]
            rows.append([*part["correct"], *part["guess"], length, closest])
    return np.asarray(rows, dtype=np.float64)


def bleu(sums: NDArray[np.float64], order: int) -> NDArray[np.float64]:
    """Return corpus BLEU of the given order, in percent, from `(R, 10)` sums of `bleu_sums`.

    Uses coco-caption's smoothing (1e-15 above, 1e-9 below) and brevity penalty.
    """
    tiny, small = 1e-15, 1e-9
    precisions = (sums[:, :order] + tiny) / (sums[:, BLEU_ORDER : BLEU_ORDER + order] + small)
    mean = np.exp(np.log(precisions).mean(axis=1))
    lengths = (sums[:, 8] + tiny) / (sums[:, 9] + small)
    penalty = np.where(lengths < 1, np.exp(1 - 1 / np.maximum(lengths, tiny)), 1.0)
    return np.asarray(100.0 * mean * penalty)


def bleu_of_order(order: int) -> Callable[[Sequence[str], Captions], Measure]:
    """Return the metric BLEU of an order from 1 to 4."""

    def measure(predictions: Sequence[str], references: Captions) -> Measure:
        sums = _known_bleu_sums(tuple(predictions), tuple(map(tuple, references)))
        return Measure(sums, functools.partial(bleu, order=order))

    return measure


@functools.lru_cache(maxsize=2)
def _known_bleu_sums(
    predictions: tuple[str, ...], references: tuple[tuple[str, ...], ...]
) -> NDArray[np.float64]:
    """Count once for all four orders."""
    return bleu_sums(predictions, references)


def meteor(predictions: Sequence[str], references: Captions) -> Measure:
    """Return METEOR 1.5, against the best reference.

    Raises:
        MissingDependencyError: no Java, or the program fails or takes too long.
    """
    from encoder_bench.metrics import meteor as program

    return Measure(_rows_by_java("meteor", predictions, references), program.meteor)


def spice(predictions: Sequence[str], references: Captions) -> Measure:
    """Return the mean F-score of SPICE.

    Raises:
        MissingDependencyError: not installed, changed since, or the program fails or takes too
            long.
    """
    return mean_percent(_rows_by_java("spice", predictions, references) / 100)


_KNOWN: dict[tuple[str, str, tuple[str, ...]], NDArray[np.float64]] = {}
"""What a Java program said of a caption and its references, which no other caption changes."""


def _rows_by_java(
    name: str, predictions: Sequence[str], references: Captions
) -> NDArray[np.float64]:
    """Return a row per caption; the program is asked only for what it has not scored before."""
    from encoder_bench.metrics.meteor import meteor_counts
    from encoder_bench.metrics.spice import spice

    pairs = [
        (name, text, tuple(truths)) for text, truths in zip(predictions, references, strict=True)
    ]
    new = [pair for pair in dict.fromkeys(pairs) if pair not in _KNOWN]
    if new:
        program = meteor_counts if name == "meteor" else spice
        rows = program([text for _, text, _ in new], [truths for *_, truths in new])
        _KNOWN.update(zip(new, rows, strict=True))
    return np.array([_KNOWN[pair] for pair in pairs])
