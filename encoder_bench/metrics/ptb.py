"""Captions to tokens without Java, as Stanford's PTB tokenizer has them.

Reference: coco-caption's `ptbtokenizer.py` (PTBTokenizer of CoreNLP 3.4.1, `-preserveLines
-lowerCase`); Marcus, Santorini and Marcinkiewicz 1993 for the conventions.
"""

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


_BRACKETS = tuple(zip("()[]{}", ("lrb", "rrb", "lsb", "rsb", "lcb", "rcb"), strict=True))
_STARTS = "|".join(
    f"{word[0]}(?i:{word[1:]})"
    for word in (
        "A", "About", "According", "Additionally", "After", "An", "As", "At", "But", "Earlier",
        "He", "Her", "Here", "However", "If", "In", "It", "Last", "Many", "More", r"Mr\.", r"Ms\.",
        "Now", "Once", "One", "Other", "Our", "She", "Since", "So", "Some", "Such", "That", "The",
        "Their", "Then", "There", "These", "They", "This", "We", "What", "When", "While", "Yet",
        "You",
    )
)  # fmt: skip
"""Words that begin a sentence where they follow a letter and its full stop."""
_STATES = r"(?<![\w.&'-])(A(?i:rk|z)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)"
_STATES += r"|T(?i:ex)|W(?i:ash))\."
"""Abbreviations that in lower case are words."""
_CASED_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (_STATES, rf"\1{_KEPT_STOP}"),
        (rf"(?<![\w.&'-])([A-Za-z])\.(?=\s*$|\s+(?:{_STARTS})(?:\s|$))", r"\1 . "),
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
        (r"(?<=[^\W_])\.(?=[,;:])", _KEPT_STOP),
        (r"(?<![\w.])\.(?=[^\W\d_])", " . "),
        (r'["\u00ab\u00bb]|``|\'\'', " '' "),
        (r"`", " ` "),
        *((f"\\{bracket}", f" {_KEPT_DASH}{name}{_KEPT_DASH} ") for bracket, name in _BRACKETS),
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
_PLAIN = re.compile(r"[A-Za-z ]*(?<![A-Za-z])[a-z]{2,}\.?\s*")
_ABBREVIATION = re.compile(
    r"(?:[a-z]\.)*[a-z]|ph\.d|ed\.d|a\.k\.a"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu(?:rs)?|fri"
    r"|ala|ariz|calif|colo|conn|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn"
    r"|va|vt|wisc?|wyo"
    r"|mrs?|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|mt|capt"
    r"|ste?|ave|pres|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|ft|ad[jv]|asst|assoc|ens|insp|mlle|mme"
    r"|msgr|sfc|vs|alex|wm|jos|cie|cf|treas|invt|elec|natl|m[ft]g"
    r"|inc|cos?|corp|p?pt[ey]s?|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|dept|bldg|ct"
    r"|jr|sr|bros|blvd|rd|esq|ph|tel|est|ext|sq|etc|al|seq"
)
"""CoreNLP's list, in lower case."""


@functools.lru_cache(maxsize=1 << 17)
def ptb_tokenize(caption: str) -> str:
    """Return a caption's tokens, lower-case, without punctuation, joined by spaces.

    A letter and its full stop at the caption's end ("a letter K.") are two tokens: CoreNLP looks
    over the line's end, and splits them where the next caption begins with "A", "The" or their
    like, as most captions do. Here no caption changes another's tokens.

    >>> ptb_tokenize("A man's dog can't see the T.V., it's well-trained!")
    "a man 's dog ca n't see the t.v. it 's well-trained"
    """
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
        word = _SPLIT_WORDS.get(word, word)
        ends = word.strip(".") and word.endswith(".") and not _ABBREVIATION.fullmatch(word[:-1])
        tokens += [word[:-1], "."] if ends else word.split()
    kept = (token.replace(_KEPT_STOP, ".") for token in tokens)
    return [token for token in kept if token not in PUNCTUATION]
