"""A tokenizer for captions without Java, equal to Stanford's PTB tokenizer on captions.

What belongs here: the rules that captions meet, lower-casing, and the removal of punctuation that
the COCO caption evaluation does. `tests/metrics/test_ptb.py` compares it with the Java program.

Reference: coco-caption's `ptbtokenizer.py` (PTBTokenizer of CoreNLP 3.4.1, `-preserveLines
-lowerCase`); Marcus, Santorini and Marcinkiewicz 1993 for the conventions.
"""

from __future__ import annotations

import functools
import re

VERSION = 1

PUNCTUATION = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
"""Tokens that the official evaluation drops.

Its list has -LRB- and its like in upper case, the tokens are lower case by then, so brackets stay.
"""

_SPLIT_WORDS = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
}
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[\u2018\u2019]", "'"),
        (r"[\u201c\u201d]", '"'),
        (r"\.\.\.+|\u2026", " ... "),
        (r"(?<!\.)\.\.(?!\.)", " . . "),
        (r"--+|\u2014|\u2013", " -- "),
        (r'["\u00ab\u00bb]', " '' "),
        (r"\(", " -lrb- "),
        (r"\)", " -rrb- "),
        (r"\[", " -lsb- "),
        (r"\]", " -rsb- "),
        (r"\{", " -lcb- "),
        (r"\}", " -rcb- "),
        (r"([?!]+|_{2,})", r" \1 "),
        (r"(?<!\d):|:(?!\d)", " : "),
        (r"([;@#$%&*+=<>~^|\\])", r" \1 "),
        (r"(?<!\d),|,(?!\d)", " , "),
        (r"(?<=[^\s'])('s|'m|'d|'re|'ve|'ll)(?=[\s.,;:?!]|$)", r" \1"),
        (r"n't\b", " n't"),
        (r"(?<![\w'])'(?!(?:s|m|d|re|ve|ll|n)\b)", " ' "),
        (r"'(?=\s|$)", " ' "),
    )
)
_ABBREVIATION = re.compile(r"(?:[a-z]\.)+[a-z]?|mr|mrs|ms|dr|st|jr|sr|vs|etc|inc|co|no|mt|ave")

_LONGEST_KEPT = 500


def ptb_tokenize(caption: str) -> str:
    """Return a caption's tokens, lower-case, without punctuation, joined by spaces.

    >>> ptb_tokenize("A man's dog can't see the T.V., it's well-trained!")
    "a man 's dog ca n't see the t.v. it 's well-trained"
    """
    return _kept(caption) if len(caption) <= _LONGEST_KEPT else _tokenize(caption)


@functools.lru_cache(maxsize=1 << 18)
def _kept(caption: str) -> str:
    """Tokenise once what several metrics and blind controls ask for."""
    return _tokenize(caption)


def forget() -> None:
    """Drop the captions that are kept tokenised, so that a timing starts from nothing."""
    _kept.cache_clear()


def _tokenize(caption: str) -> str:
    text = caption.replace("\n", " ").lower()
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    tokens: list[str] = []
    for word in text.split():
        tokens += _split_period(_SPLIT_WORDS.get(word, word)).split()
    return " ".join(token for token in tokens if token not in PUNCTUATION)


def _split_period(word: str) -> str:
    """Cut a full stop off a word's end, but not off an abbreviation's."""
    if len(word) > 1 and word.endswith(".") and not _ABBREVIATION.fullmatch(word[:-1]):
        return f"{word[:-1]} ."
    return word
