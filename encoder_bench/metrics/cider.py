"""CIDEr-D on tokenised captions, all images at once in arrays.

What belongs here: n-grams as numbers, their weights, and the similarity of a caption with its
references. Numbers equal pycocoevalcap's `cider_scorer.py` to rounding, several times as fast.

Shapes: S sentences, T words of all sentences, P different (sentence, n-gram) pairs of one order.

Reference: Vedantam et al. 2015 (arXiv 1411.5726); the D variant clips counts and weighs lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDERS = 4
SIGMA = 6.0
_SCALE = 10.0

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Sentences:
    """Sentences as word numbers: `words` and each word's `sentence` `(T,)`, `lengths` `(S,)`."""

    words: Ints
    sentence: Ints
    lengths: Ints


@dataclass(frozen=True, slots=True)
class _Counts:
    """How often n-grams of one order are in sentences: `sentence`, `gram`, `count` `(P,)`."""

    sentence: Ints
    gram: Ints
    count: Ints
    grams: int


def cider_d(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    corpus: Sequence[Sequence[str]] | None = None,
) -> Floats:
    """Return the CIDEr-D of each image, from 0 to 10.

    Args:
        predictions: a caption an image, tokens joined by spaces.
        references: the same images' human captions, at least one each, in the same form.
        corpus: captions by image of the split whose document frequencies count; None for
            `references`.

    >>> cider_d(["a red bus", "a cat"], [["a red bus"], ["the cat"]]).round(2).tolist()
    [7.5, 1.25]
    """
    if not predictions:
        return np.zeros(0)
    documents = references if corpus is None else corpus
    count = len(predictions)
    sizes = np.array([len(texts) for texts in references], dtype=np.int64)
    flat = [text for texts in references for text in texts]
    others = [] if corpus is None else [text for texts in corpus for text in texts]
    read = _read([*predictions, *flat, *others])
    own = np.repeat(np.arange(count), sizes)  # the image of each reference
    reference = slice(count, count + len(flat))
    first_document = count if corpus is None else count + len(flat)
    owner = np.full(len(read.lengths), -1, dtype=np.int64)
    owner[first_document:] = np.repeat(
        np.arange(len(documents)), [len(texts) for texts in documents]
    )
    bigrams = np.maximum(read.lengths - 1, 0)
    delta = (bigrams[:count][own] - bigrams[reference]).astype(np.float64)
    penalty = np.exp(-(delta**2) / (2 * SIGMA**2))
    similarity = np.zeros(len(flat))
    for counts in _all_orders(read):
        weights = _weights(counts, owner, len(documents))
        similarity += _cosine(counts, weights, count, own)
    by_image = np.bincount(own, weights=similarity * penalty, minlength=count)
    return np.asarray(_SCALE * by_image / ORDERS / np.maximum(sizes, 1))


def _read(texts: Sequence[str]) -> _Sentences:
    """Number the words in order of first appearance."""
    numbers: dict[str, int] = {}
    split = [text.split() for text in texts]
    words = [numbers.setdefault(word, len(numbers)) for row in split for word in row]
    lengths = np.array([len(row) for row in split], dtype=np.int64)
    sentence = np.repeat(np.arange(len(split)), lengths)
    return _Sentences(np.array(words, dtype=np.int64), sentence, lengths)


def _all_orders(read: _Sentences) -> list[_Counts]:
    """Return the counts of n-grams of order 1 to 4.

    An n-gram's number is found from those of its first n - 1 words and of its last word.
    """
    found = []
    gram, sentence = read.words, read.sentence
    vocabulary = int(read.words.max(initial=-1)) + 1
    for order in range(1, ORDERS + 1):
        if order > 1:
            last = read.words[order - 1 :]
            whole = read.sentence[order - 1 :] == read.sentence[: len(last)]
            pairs = gram[: len(last)] * max(vocabulary, 1) + last
            kept, numbers = np.unique(pairs[whole], return_inverse=True)
            gram = np.full(len(last), len(kept), dtype=np.int64)  # runs on into the next sentence
            gram[whole] = numbers
            sentence = read.sentence[: len(last)]
            total, chosen = len(kept), whole
        else:
            total, chosen = vocabulary, np.ones(len(gram), dtype=bool)
        keys, counts = np.unique(sentence[chosen] * (total + 1) + gram[chosen], return_counts=True)
        found.append(_Counts(keys // (total + 1), keys % (total + 1), counts, total))
    return found


def _weights(counts: _Counts, owner: Ints, documents: int) -> Floats:
    """Return `(P,)` term frequency times inverse document frequency.

    Args:
        counts: of one order.
        owner: `(S,)` the document that a sentence belongs to, -1 where it belongs to none.
        documents: how many there are.
    """
    inside = owner[counts.sentence] >= 0
    keys = owner[counts.sentence[inside]] * (counts.grams + 1) + counts.gram[inside]
    frequency = np.bincount(np.unique(keys) % (counts.grams + 1), minlength=counts.grams + 1)
    inverse = np.log(float(documents)) - np.log(np.maximum(1.0, frequency))
    return np.asarray(counts.count * inverse[counts.gram])


def _cosine(counts: _Counts, weights: Floats, images: int, own: Ints) -> Floats:
    """Return the clipped cosine of each reference with its image's caption.

    Sentences up to `images` are captions, and the next ones their references.
    """
    total = images + len(own)
    norms = np.sqrt(np.bincount(counts.sentence, weights=weights**2, minlength=total))[:total]
    guess = counts.sentence < images
    theirs = (counts.sentence >= images) & (counts.sentence < total)
    place = counts.sentence[theirs] - images
    guessed = counts.sentence[guess] * (counts.grams + 1) + counts.gram[guess]  # sorted
    wanted = own[place] * (counts.grams + 1) + counts.gram[theirs]
    at = np.searchsorted(guessed, wanted)
    at[at == len(guessed)] = 0
    shared = guessed[at] == wanted if len(guessed) else np.zeros(len(wanted), dtype=bool)
    ours, truth = weights[guess][at[shared]], weights[theirs][shared]
    clipped = np.minimum(ours, truth) * truth
    dots = np.bincount(place[shared], weights=clipped, minlength=len(own)).astype(np.float64)
    below = norms[:images][own] * norms[images:]
    return np.asarray(np.divide(dots, below, out=dots, where=below != 0))
