"""A tokenizer for captions without Java, equal to Stanford's PTB tokenizer on captions.

What belongs here: the rules that captions meet, lower-casing, and the removal of punctuation that
the COCO caption evaluation does. `ptb_java.py` compares it with the Java program.

Reference: coco-caption's `ptbtokenizer.py` (PTBTokenizer of CoreNLP 3.4.1, `-preserveLines
-lowerCase`); Marcus, Santorini and Marcinkiewicz 1993 for the conventions.
"""

from __future__ import annotations

import functools
import re

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
_KEPT_APOSTROPHE, _KEPT_AND, _KEPT_STOP, _KEPT_DASH = "\ue000", "\ue001", "\ue002", "\ue003"
"""Stand for a sign that stays part of its word while the rules run."""


def _bracket(name: str) -> str:
    return f" {_KEPT_DASH}{name}{_KEPT_DASH} "


_CASED_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[\u2018\u2019]", "'"),
        (r"[\u201c\u201d]", '"'),
        (r"\u20ac(?=\d)", "$ "),
        (r"\u00a3(?=\d)", "# "),
        (r"(?<=\d)\u00a2", " cents"),
        ("\u00bd", "1/2"),
        ("\u00bc", "1/4"),
        ("\u00be", "3/4"),
        (r"&amp;", "&"),
        (r"\b([A-Z]{1,3})&([A-Z]{1,3})\b", rf"\1{_KEPT_AND}\2"),
    )
)
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"([:;])(-?)\)", rf" \1\2{_KEPT_DASH}rrb{_KEPT_DASH} "),
        (r"([:;])(-?)\((?=\s|$)", rf" \1\2{_KEPT_DASH}lrb{_KEPT_DASH} "),
        (r"\.\.\.+|\u2026", " ... "),
        (r"(?<!\.)\.\.(?!\.)", " . . "),
        (r"--+|\u2014|\u2013", " -- "),
        (r"(\d:\d\d)-(?=\d)", r"\1 -"),
        (r"(\d:\d\d)(?=[a-z])", r"\1 "),
        (r"\b([a-z]+\d+)\.(?=\d)", r"\1 ."),
        (r"\bno\.(?=\s+\d)", f"no{_KEPT_STOP}"),
        (r'["\u00ab\u00bb]|``|\'\'', " '' "),
        (r"`", " ` "),
        (r"\(", _bracket("lrb")),
        (r"\)", _bracket("rrb")),
        (r"\[", _bracket("lsb")),
        (r"\]", _bracket("rsb")),
        (r"\{", _bracket("lcb")),
        (r"\}", _bracket("rcb")),
        (r"([?!]+)(?!\w)|(?<!\w)([?!]+)", r" \1\2 "),
        (r"(_{2,}|\*+)", r" \1 "),
        (rf"(?<=[^\s\d:;-]):(?![-{_KEPT_DASH}])|:(?![\d{_KEPT_DASH}-])", " : "),
        (rf"([;@$%&+=<>~^|\\\u00a9\u00ae\u2122]|#(?![a-z]))(?![-{_KEPT_DASH}])", r" \1 "),
        (r"(?<!\d),|,(?!\d)", " , "),
        (r"(?<=[a-z])/(?=\s|$)", " / "),
        (r"(?<!\w)'(?=\d\ds\b|em\b)", _KEPT_APOSTROPHE),
        (r"(?<!\w)'n'(?=\s|$)", f"{_KEPT_APOSTROPHE}n{_KEPT_APOSTROPHE}"),
        (r"(?<!\w)'t(?=is\b|was\b)", f"{_KEPT_APOSTROPHE}t "),
        (r"\by'(?=all\b)", f"y{_KEPT_APOSTROPHE} "),
        (r"(?<=[^\s'])('s|'m|'d|'re|'ve|'ll)(?=[\s.,;:?!'-]|$)", r" \1"),
        (r"n't(?=s?\b)", " n't"),
        (r"(?<![\w'])'(?!(?:s|m|d|re|ve|ll|n)\b)", " ' "),
        (r"(?<=\d)'(?=\d)|'(?=[\s.,;:?!-]|$)", " ' "),
        (r"(?<=\S)-(?=\s|$)|(?<!\S)-(?=[a-z])|(?<='s)-(?=[a-z])", " - "),
        (r"/(?=/)", "/ "),
    )
)
_WHOLE = re.compile(r"(\S+@\S+\.\w+|https?://\S+)")
"""Addresses, which stay whole."""
_PLAIN = re.compile(r"[A-Za-z ]*\.?\s*")
_ABBREVIATION = re.compile(
    r"(?:[a-z]\.)*[a-z]|ph\.d|mr|mrs|ms|dr|st|jr|sr|vs|etc|inc|co|mt|ave|blvd|ft|sq"
    r"|jan|feb|aug|sept?|oct|nov|dec|mon|tues?|wed|thurs?|fri"
)
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
    text = caption.replace("\n", " ")
    if "@" not in text and "://" not in text:
        return " ".join(_tokens(text))
    found: list[str] = []
    for index, part in enumerate(_WHOLE.split(text)):
        found += [part.lower()] if index % 2 else _tokens(part)
    return " ".join(found)


def _tokens(text: str) -> list[str]:
    if _PLAIN.fullmatch(text):  # most captions; no rule would change them
        text = text.lower()
    else:
        for pattern, replacement in _CASED_RULES:
            text = pattern.sub(replacement, text)
        text = text.lower()
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
    text = text.replace(_KEPT_APOSTROPHE, "'").replace(_KEPT_AND, "&").replace(_KEPT_DASH, "-")
    tokens: list[str] = []
    for word in text.split():
        tokens += _split_period(_SPLIT_WORDS.get(word, word)).split()
    kept = (token.replace(_KEPT_STOP, ".") for token in tokens)
    return [token for token in kept if token not in PUNCTUATION]


def _split_period(word: str) -> str:
    """Cut a full stop off a word's end, but not off an abbreviation's."""
    if word.strip(".") and word.endswith(".") and not _ABBREVIATION.fullmatch(word[:-1]):
        return f"{word[:-1]} ."
    return word
