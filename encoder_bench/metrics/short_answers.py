"""Short answers, a number or yes and no: read strictly and as GVT's scripts do, and scored.

Reference: TencentARC/GVT at commit 40532be, `modules/evaluations/count.py`, `multiclass.py`.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from encoder_bench.base.errors import DataError
from encoder_bench.metrics.statistics import (
    Measure,
    References,
    Statistic,
    plain_ratio,
    ratio,
    share,
)

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = (
    {word: number for number, word in enumerate(_UNITS)}
    | {ten: 10 * number for number, ten in enumerate(_TENS, start=2)}
    | {
        f"{ten} {_UNITS[unit]}": 10 * number + unit
        for number, ten in enumerate(_TENS, start=2)
        for unit in range(1, 10)
    }
    | dict.fromkeys(("a hundred", "one hundred", "hundred"), 100)
    | dict.fromkeys(("no", "none", "nobody", "nothing"), 0)
)
_NUMBER = re.compile(
    r"(?<![\w.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.0+)?(?!\w|[.,]\d)|\b(?:"
    + "|".join(sorted(map(re.escape, _VALUES), key=len, reverse=True))
    + r")\b"
)
_REFUSAL = re.compile(
    r"\b(?:no (?:idea|clue|way|answer|information)|no one (?:can|could|knows)"
    r"|no (?:image|picture)s?(?! (?:on|above|below|behind|hang|hung|hanging|next|near)\b"
    r"| (?:in|at|of) the (?:wall|room|frame|table)\b)"
    r"|not (?:sure|able|possible|clear|certain|enough|known)|(?:hard|difficult) to \w+"
    r"|(?:do|does|did)(?:n't| not) (?:know|say|tell|show(?! (?:an?|any)\b))"
    r"|cannot|can't|can not|couldn't|could not|unable|unknown|unclear|uncertain|unsure|impossible"
    r"|sorry|dunno|idk)\b"
)
"""An answer with one of these is a refusal, of a count and of yes or no alike."""
_NEGATIVE = re.compile(r"(?<![\w.,])[-\u2212]\d|\b(?:minus|negative) ")
_BOUND = re.compile(
    r"\b(?:at (?:least|most)|(?:more|less|fewer) than|or (?:more|less|fewer))\b"
    rf"|\b(?:over|under|up to) (?:{_NUMBER.pattern})"  # and not "under the table"
    r"|\d ?\+"
)
_SOMETHING_ELSE = re.compile(r"\b(?:and|plus) (?:an?|another|some|several|many|few)\b(?! hundred)")
_NOT = r"(?:n't|\bnot)(?: think there (?:is|are))?"
_NOT_ANY = re.compile(
    rf"{_NOT}(?: \w+)? any\b|\bno one\b"
    rf"|{_NOT}(?: (?:see|find|have|spot|even))*(?: a single(?: one)?| one)\b"
)
_NOT_SO_MANY = re.compile(
    rf"{_NOT}(?: (?!all\b|mistaken\b)\w+)? (?!no|zero)(?P<many>{_NUMBER.pattern})"
)
_MAX_DIGITS = 18


def _plain(answer: str) -> str:
    return " ".join(answer.lower().replace("\u2019", "'").split())


def parse_count(answer: str) -> int | None:
    """Return the number that an answer gives, or None where it gives none or several.

    Digits or number words to a hundred, as whole words, in any case. "2.0" is 2 and "1,000" is a
    thousand, since they can mean nothing else; "no", "none", "nobody", "there aren't any" and
    "there isn't one" are 0. The same number twice is one number. Unparsed are: refusals; negative
    numbers and fractions, as no count is one; bounds ("at least 3") and negations ("not two"),
    which fit many counts; and a number beside something else that is counted too ("two people and
    a dog"), which may be the answer or a part of it.

    >>> [parse_count(t) for t in ("Nine.", "There are 3 dogs", "a phone", "none", "2 or 3")]
    [9, 3, None, 0, None]
    >>> [parse_count(t) for t in ("I have no idea", "no dogs", "I cannot see any", "-3")]
    [None, 0, None, None]
    >>> [parse_count(t) for t in ("2.0", "1,000", "2.5", "There aren't any", "at least 3")]
    [2, 1000, None, 0, None]
    >>> [parse_count(t) for t in ("There isn't a single one.", "not two dogs", "not only one")]
    [0, None, None]
    """
    text = _plain(answer)
    if any(each.search(text) for each in (_REFUSAL, _NEGATIVE, _BOUND, _SOMETHING_ELSE)):
        return None
    text = " ".join(_NOT_ANY.sub(" none ", text).replace("-", " ").split())
    said = _NUMBER.findall(_NOT_SO_MANY.sub(" ", text))
    if any(denied["many"] not in said for denied in _NOT_SO_MANY.finditer(text)):
        return None
    found = set()
    for word in said:
        digits = word.partition(".")[0].replace(",", "")
        if word in _VALUES or len(digits) <= _MAX_DIGITS:
            found.add(_VALUES[word] if word in _VALUES else int(digits))
    return found.pop() if len(found) == 1 else None


_GVT_WORDS = {"none": 0} | {word: number for number, word in enumerate(_UNITS[:9]) if number}
_GVT_WORDS |= {"nive": 9}  # the script's own spelling of nine
_DIGITS = re.compile(r"\d+")


def parse_count_gvt(prediction: str) -> int:
    """Return the number that GVT's script reads out of an answer.

    It replaces number words anywhere, inside other words too ("phone" holds "one"), misspells
    nine, minds the case, takes the first digits, and 0 where there are none. Deviation: a number of
    more than 18 digits is 10 to the 18th, so that an error can be computed.

    >>> [parse_count_gvt(t) for t in ("a phone", "Two", "nine", "two or three")]
    [1, 0, 0, 2]
    """
    for word, number in _GVT_WORDS.items():
        prediction = prediction.replace(word, str(number))
    digits = _DIGITS.search(prediction)
    if digits is None:
        return 0
    return int(digits.group()) if len(digits.group()) <= _MAX_DIGITS else 10**_MAX_DIGITS


_YES = re.compile(r"\b(?:yes|yeah|yep|true)\b")
_NO = re.compile(
    r"\b(?:no|nope|not|false|none|nobody|nothing|(?:is|are|was|were|do|does|did|has|have)n't)\b"
)
_FIRST = re.compile(r"\W*(yes|no)\b")
_NOT_SEEN = re.compile(
    r"\b(?:cannot|can't|can not|couldn't|could not|unable to) (?:see|find|spot|detect)\b"
)
_OPPOSITE = {
    "no": re.compile(r"\byes\b"),
    "yes": re.compile(
        r"(?:[,.;:!?]|\b(?:yes|but|or|and|then|maybe|actually))\W*"
        r"\bno\b(?=\W*(?:$|[,.;:!?]|(?:but|or)\b))"
    ),
}
"""What contradicts an answer's first word; "no" only where it is a whole clause."""


def parse_yes_no(answer: str) -> bool | None:
    """Return True for yes, False for no, None where an answer is neither or both.

    The first word decides where it is yes or no, unless the other follows as an answer of its own
    ("No, but yes"): then either could be meant. Otherwise exactly one of the two must occur as a
    whole word; "There are none." is no. A refusal is neither, though "not sure" and "don't know"
    hold a no; "No, I cannot see one" is no refusal, as its first word says.

    >>> [parse_yes_no(t) for t in ("Yes, a notebook", "No.", "There is not", "maybe")]
    [True, False, False, None]
    >>> [parse_yes_no(t) for t in ("I don't know", "yes no?", "Yes, no doubt", "There are none.")]
    [None, None, True, False]
    """
    text = _plain(answer)
    first = _FIRST.match(text)
    if _REFUSAL.search(_NOT_SEEN.sub("", text) if first else text):
        return None
    if first:
        rest = text[first.start(1) :]
        return None if _OPPOSITE[first.group(1)].search(rest) else first.group(1) == "yes"
    yes, no = bool(_YES.search(text)), bool(_NO.search(text))
    return None if yes == no else yes


def counting_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return 100 where the one number in the answer is the true one, else 0.

    >>> counting_accuracy("nine", ["9"]), counting_accuracy("2 or 3", ["2"])
    (100.0, 0.0)
    """
    return 100.0 * (parse_count(prediction) == _true_count(answers))


def counting_accuracy_gvt(prediction: str, answers: Sequence[str]) -> float:
    """Return 100 where the number that GVT's script reads is the true one, else 0."""
    return 100.0 * (parse_count_gvt(prediction) == _true_count(answers))


def counting_error(predictions: Sequence[str], references: References) -> Measure:
    """Return the mean absolute error over the answers that can be parsed.

    >>> counting_error(["nine", "no idea"], [["7"], ["2"]]).score
    2.0
    """
    return _mean_error(map(parse_count, predictions), references)


def counting_error_gvt(predictions: Sequence[str], references: References) -> Measure:
    """Return the mean absolute error of the numbers that GVT's script reads, over all answers."""
    return _mean_error(map(parse_count_gvt, predictions), references)


def yesno_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return 100 where the answer is right, else 0, as where it is neither yes nor no.

    >>> yesno_accuracy("Yes.", ["Yes."]), yesno_accuracy("maybe", ["No."])
    (100.0, 0.0)
    """
    return 100.0 * (parse_yes_no(prediction) == _true_yes(answers))


def yesno_accuracy_gvt(prediction: str, answers: Sequence[str]) -> float:
    """Return 100 where GVT's script counts the answer as correct, else 0.

    It asks whether "yes" or "no" is anywhere in the prediction, so that "Yes, a notebook" is
    correct where the truth is No, and "yes no" always.

    >>> yesno_accuracy_gvt("Yes, a notebook", ["No."])
    100.0
    """
    text, truth = prediction.lower(), answers[0]
    return 100.0 * (("Yes" in truth and "yes" in text) or ("No" in truth and "no" in text))


def yesno_precision(predictions: Sequence[str], references: References) -> Measure:
    """Return how many of the answers read as yes are right."""
    said, truths = _said_and_true(predictions, references)
    return _ratio_of(said & truths, said, share)


def yesno_recall(predictions: Sequence[str], references: References) -> Measure:
    """Return how many of the true yes were answered with yes."""
    said, truths = _said_and_true(predictions, references)
    return _ratio_of(said & truths, truths, share)


def yesno_f1(predictions: Sequence[str], references: References) -> Measure:
    """Return the harmonic mean of precision and recall."""
    said, truths = _said_and_true(predictions, references)
    return _ratio_of(2.0 * (said & truths), said + 1.0 * truths, ratio)


def yes_rate(prediction: str, answers: Sequence[str]) -> float:
    """Return 100 where the answer is read as yes, else 0."""
    return 100.0 * (parse_yes_no(prediction) is True)


def _mean_error(guesses: Iterable[int | None], references: References) -> Measure:
    pairs = zip(guesses, map(_true_count, references), strict=True)
    rows = [(0.0, 0.0) if g is None else (float(abs(g - t)), 1.0) for g, t in pairs]
    return Measure(np.asarray(rows).reshape(-1, 2), plain_ratio)


def _ratio_of(
    above: NDArray[np.generic], below: NDArray[np.generic], statistic: Statistic
) -> Measure:
    return Measure(np.stack([above, below], axis=1).astype(np.float64), statistic)


def _said_and_true(
    predictions: Sequence[str], references: References
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which answers are read as yes, and where yes is true."""
    said = [parse_yes_no(text) is True for text in predictions]
    return np.array(said, dtype=bool), np.array([_true_yes(a) for a in references], dtype=bool)


def _true_count(answers: Sequence[str]) -> int:
    if (count := parse_count(answers[0])) is None:
        raise DataError(f"the answer {answers[0]!r} is no count")
    return count


def _true_yes(answers: Sequence[str]) -> bool:
    if (truth := parse_yes_no(answers[0])) is None:
        raise DataError(f"the answer {answers[0]!r} is neither yes nor no")
    return truth
