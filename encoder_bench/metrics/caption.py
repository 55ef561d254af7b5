"""Caption metrics without Java: CIDEr-D in arrays, BLEU and ROUGE-L by pycocoevalcap's scorers.

Reference: Vedantam et al. 2015 (arXiv 1411.5726); Papineni et al. 2002; Lin 2004; coco-caption.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder_bench.base.errors import needs_extra
from encoder_bench.metrics.ptb import ptb_tokenize
from encoder_bench.metrics.statistics import Measure, References

ORDERS = 4
"""BLEU and CIDEr count n-grams of up to four words."""
SIGMA = 6.0

Floats = NDArray[np.float64]
_Tokens = dict[int, list[str]]


def cider(
    predictions: Sequence[str], references: References, corpus: References | None = None
) -> Floats:
    """Return the CIDEr-D of each image, in percent; their mean is the corpus score.

    Document frequencies are those of `corpus`, the references of a whole split, so that a subset
    scores what it adds to the split's own score. By default they are those of `references`: a
    subset of a split then scores higher than the split, and runs compare on the same samples only.
    """
    split = None if corpus is None or corpus is references else _tokenized(corpus)
    guesses = [ptb_tokenize(text) for text in predictions]
    return 100.0 * cider_d(guesses, _tokenized(references), split)


def cider_d(
    predictions: Sequence[str], references: References, corpus: References | None = None
) -> Floats:
    """Return the CIDEr-D of each image, from 0 to 10; the D variant clips counts, weighs lengths.

    Equals pycocoevalcap's `cider_scorer.py` to rounding, several times as fast.

    Args:
        predictions: one caption per image, tokens joined by spaces.
        references: the same images' human captions, at least one each, in the same form.
        corpus: captions of each image of the split whose document frequencies count; None for
            `references`.

    >>> cider_d(["a red bus", "a cat"], [["a red bus"], ["the cat"]]).round(2).tolist()
    [7.5, 1.25]
    """
    from scipy.sparse import csr_matrix

    if not predictions:
        return np.zeros(0)
    count, documents = len(predictions), references if corpus is None else corpus
    flat = [text for texts in references for text in texts]
    others = [] if corpus is None else [text for texts in corpus for text in texts]
    sentences = [text.split() for text in (*predictions, *flat, *others)]
    theirs = slice(count, count + len(flat))
    own = np.repeat(np.arange(count), [len(texts) for texts in references])  # image of a reference
    document = np.repeat(np.arange(len(documents)), [len(texts) for texts in documents])
    places = np.arange(len(sentences) - len(document), len(sentences))
    members = csr_matrix(
        (np.ones(len(document)), (document, places)), (len(documents), len(sentences))
    )
    bigrams = np.array([max(len(words) - 1, 0) for words in sentences], dtype=np.float64)
    penalty = np.exp(-((bigrams[own] - bigrams[theirs]) ** 2) / (2 * SIGMA**2))
    similarity = np.zeros(len(flat))
    for counts in _ngrams(sentences):
        frequency = ((members @ counts) > 0).sum(axis=0)
        idf = np.log(len(documents)) - np.log(np.maximum(1.0, frequency))
        weights = counts.multiply(np.asarray(idf)).tocsr()
        norms = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)).ravel())
        clipped = weights[own].minimum(weights[theirs]).multiply(weights[theirs])
        dots, below = np.asarray(clipped.sum(axis=1)).ravel(), norms[own] * norms[theirs]
        similarity += np.divide(dots, below, out=np.zeros(len(flat)), where=below != 0)
    sums = np.bincount(own, weights=similarity * penalty, minlength=count)
    return np.asarray(10.0 * sums / ORDERS / np.maximum(np.bincount(own, minlength=count), 1))


def _ngrams(sentences: Sequence[Sequence[str]]) -> Iterator[Any]:
    """Yield sparse `(sentence, n-gram)` counts of order 1 to 4.

    An n-gram's number follows from those of its first n - 1 words and of its last word.
    """
    from scipy.sparse import csr_matrix

    numbers: dict[str, int] = {}
    words = np.array([numbers.setdefault(w, len(numbers)) for row in sentences for w in row], int)
    sentence = np.repeat(np.arange(len(sentences)), [len(row) for row in sentences])
    gram = words
    for order in range(1, ORDERS + 1):
        if order > 1:
            pairs = gram[:-1] * len(numbers) + words[order - 1 :]
            gram = np.unique(pairs, return_inverse=True)[1]
        first = sentence[: len(gram)]
        whole = first == sentence[order - 1 :]  # else it runs on into the next sentence
        shape = len(sentences), int(gram.max(initial=0)) + 1
        yield csr_matrix((np.ones(int(whole.sum())), (first[whole], gram[whole])), shape)


def rouge_l(predictions: Sequence[str], references: References) -> Floats:
    """Return the ROUGE-L of each image (F with beta 1.2, best over references), in percent."""
    with needs_extra("java", "ROUGE-L"):
        from pycocoevalcap.rouge.rouge import Rouge

    guesses, truths = tokenized(predictions, references)
    return 100.0 * np.asarray(Rouge().compute_score(truths, guesses)[1], dtype=np.float64)


def bleu_of_order(order: int) -> Callable[[Sequence[str], References], Measure]:
    """Return the metric BLEU of an order from 1 to 4."""

    def measure(predictions: Sequence[str], references: References) -> Measure:
        sums = _known_bleu_sums(tuple(predictions), tuple(map(tuple, references)))
        return Measure(sums, functools.partial(bleu, order=order))

    return measure


@functools.lru_cache(maxsize=2)
def _known_bleu_sums(
    predictions: tuple[str, ...], references: tuple[tuple[str, ...], ...]
) -> Floats:
    """Count once for all four orders."""
    return bleu_sums(predictions, references)


def bleu_sums(predictions: Sequence[str], references: References) -> Floats:
    """Return `(n, 10)` counts by image that corpus BLEU is a function of.

    Columns: matches of order 1 to 4, n-grams of order 1 to 4, length, and the reference length
    that is closest to it.
    """
    with needs_extra("java", "BLEU"):
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    guesses, truths = tokenized(predictions, references)
    scorer = BleuScorer(n=ORDERS)
    rows = []
    with contextlib.redirect_stdout(io.StringIO()):
        for key, guess in guesses.items():
            scorer += (guess[0], truths[key])
        for part in scorer.ctest:
            length = part["testlen"]
            closest = min((abs(r - length), r) for r in part["reflen"])[1]
            rows.append([*part["correct"], *part["guess"], length, closest])
    return np.asarray(rows, dtype=np.float64)


def bleu(sums: Floats, order: int) -> Floats:
    """Return corpus BLEU of the given order, in percent, from `(R, 10)` sums of `bleu_sums`.

    Uses coco-caption's smoothing (1e-15 above, 1e-9 below) and brevity penalty.
    """
    tiny, small = 1e-15, 1e-9
    precisions = (sums[:, :order] + tiny) / (sums[:, ORDERS : ORDERS + order] + small)
    mean = np.exp(np.log(precisions).mean(axis=1))
    lengths = (sums[:, 8] + tiny) / (sums[:, 9] + small)
    penalty = np.where(lengths < 1, np.exp(1 - 1 / np.maximum(lengths, tiny)), 1.0)
    return np.asarray(100.0 * mean * penalty)


def tokenized(predictions: Sequence[str], references: References) -> tuple[_Tokens, _Tokens]:
    """Return predictions and references as pycocoevalcap takes them, one key per image."""
    guesses = {i: [ptb_tokenize(text)] for i, text in enumerate(predictions)}
    return guesses, dict(enumerate(_tokenized(references)))


def _tokenized(captions: References) -> list[list[str]]:
    return [[ptb_tokenize(text) for text in texts] for texts in captions]
