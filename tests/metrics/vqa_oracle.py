"""A second, deliberately plain reading of vqaEval.py's rules, to compare the real one with.

Written from the behaviour of GT-Vision-Lab/VQA's `vqaEval.py` at commit a013f00 (present form) and
c4e6a0e (before 2021), character by character and without the real one's tables or expressions.
"""

from __future__ import annotations

import functools
import unicodedata

_MISSPELT = """
aint arent cant couldve couldnt couldn'tve couldnt've didnt doesnt dont hadnt hadnt've hadn'tve
hasnt havent hed hed've he'dve hes howd howll hows isnt itd itd've it'dve itll maam mightnt
mightnt've mightn'tve mightve mustnt mustve neednt notve oclock oughtnt ow's'at 'ows'at 'ow'sat
shant shed've she'dve shouldve shouldnt shouldnt've shouldn'tve somebody'd somebodyd've
somebody'dve somebodyll somebodys someoned someoned've someone'dve someonell someones somethingd
somethingd've something'dve somethingll thats thered thered've there'dve therere theres theyd
theyd've they'dve theyll theyre theyve twas wasnt wed've we'dve weve werent whatll whatre whats
whatve whens whered wheres whereve whod whod've who'dve wholl whos whove whyll whyre whys wont
wouldve wouldnt wouldnt've wouldn'tve yall yall'll y'allll yall'd've y'alld've y'all'dve youd
youd've you'dve youll youre youve
"""
MISSPELT = frozenset(_MISSPELT.split())
ENDINGS = ("n't've", "'d've", "n't", "'ve", "'re", "'ll", "'d", "'s")
WHOLE = {
    "maam": "ma'am",
    "oclock": "o'clock",
    "twas": "'twas",
    "yall": "y'all",
    "yallll": "y'all'll",
    "yalldve": "y'all'd've",
    "owsat": "'ow's'at",
    "couldve": "could've",
    "shouldve": "should've",
    "wouldve": "would've",
}
VALUES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MARKS = ';/[]"{}()=+\\_-><@`,?!'


def spelt(word: str) -> str:
    """Put the apostrophes where English has them; `somebody'd` alone loses its own."""
    if word not in MISSPELT:
        return word
    if word == "somebody'd":
        return "somebodyd"
    bare = word.replace("'", "")
    if bare in WHOLE:
        return WHOLE[bare]
    for ending in ENDINGS:
        if bare.endswith(ending.replace("'", "")):
            return bare[: len(bare) - len(ending.replace("'", ""))] + ending
    raise AssertionError(word)


def is_digit(letter: str) -> bool:
    return unicodedata.category(letter) == "Nd"


@functools.cache
def without_punctuation(text: str) -> str:
    between = any(
        text[i] == "," and is_digit(text[i - 1]) and is_digit(text[i + 1])
        for i in range(1, len(text) - 1)
    )
    out = text
    for mark in MARKS:
        if mark not in text:
            continue
        touches = any(
            letter == mark and (text[i - 1 : i] == " " or text[i + 1 : i + 2] == " ")
            for i, letter in enumerate(text)
        )
        kept = []
        for letter in out:
            if letter != mark:
                kept.append(letter)
            elif not (touches or between):
                kept.append(" ")
        out = "".join(kept)
    letters, removed = [], 0
    for i, letter in enumerate(out):
        if letter == "." and removed < 32 and not (i + 1 < len(out) and is_digit(out[i + 1])):
            removed += 1
        else:
            letters.append(letter)
    return "".join(letters)


@functools.cache
def words_rewritten(text: str) -> str:
    found = []
    for word in text.lower().split():
        if word == "none":
            word = "0"
        elif word in VALUES:
            word = str(VALUES.index(word))
        if word not in ("a", "an", "the"):
            found.append(spelt(word))
    return " ".join(found)


def trim(text: str) -> str:
    return "".join(" " if letter in "\n\t" else letter for letter in text).strip()


def leave_one_out(prediction: str, humans: list[str]) -> float:
    scores = []
    for left_out in range(len(humans)):
        others = humans[:left_out] + humans[left_out + 1 :]
        scores.append(min(1, sum(other == prediction for other in others) / 3))
    return 100 * sum(scores) / len(scores)


def present(prediction: str, humans: list[str]) -> float:
    prediction, humans = trim(prediction), [trim(text) for text in humans]
    if any(text != humans[0] for text in humans):
        humans = [words_rewritten(without_punctuation(text)) for text in humans]
        prediction = words_rewritten(without_punctuation(prediction))
    return leave_one_out(prediction, humans)


def before_2021(prediction: str, humans: list[str]) -> float:
    if any(text != humans[0] for text in humans):
        humans = [without_punctuation(text) for text in humans]
    return leave_one_out(words_rewritten(without_punctuation(trim(prediction))), humans)
