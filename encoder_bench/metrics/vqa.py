"""VQA accuracy as the official evaluation computes it, and its common variants.

Reference: Antol et al. 2015 (arXiv 1505.00468), section 3; GT-Vision-Lab/VQA,
`PythonEvaluationTools/vqaEvaluation/vqaEval.py`, in its present form (commit a013f00) and, for
`pre2021`, as it was before (commit c4e6a0e).
"""

import functools
import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# The official expression says "(?!<=" where "(?<!" was meant, so it never looks behind.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_COMMA = re.compile(r"(\d)(,)(\d)")
_PERIODS_REMOVED = int(re.UNICODE)
"""The official code passes `re.UNICODE` where `sub` takes a count, so 32 periods at most go."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = frozenset(("a", "an", "the"))

# Keys are these words with one of their apostrophes missing, never more.
_CONTRACTED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
something'd something'll that's there'd there're there's they'd they'll they're they've wasn't
we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's
who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've 'twas 'ow's'at
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
""".split()  # noqa: SIM905 - a hundred words read better so
_CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word
    for word in _CONTRACTED
    for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}


@functools.lru_cache(maxsize=1 << 15)  # people give the same few answers to many questions
def strip_punctuation(text: str) -> str:
    """Remove or blank punctuation, as `processPunctuation` does."""
    out = text
    number = _COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        if mark in text:
            attached = number or mark + " " in text or " " + mark in text
            out = out.replace(mark, "" if attached else " ")
    return _PERIOD.sub("", out, count=_PERIODS_REMOVED)


def digits_and_articles(text: str) -> str:
    """Lower-case, write number words as digits, drop articles, restore apostrophes.

    >>> digits_and_articles("The two dogs dont bark")
    "2 dogs don't bark"
    """
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@functools.lru_cache(maxsize=1 << 15)
def normalise(text: str) -> str:
    """Return an answer as the present official evaluation compares it.

    >>> normalise("The two red/blue dogs, isnt it?")
    "2 red blue dogs isn't it"
    """
    return digits_and_articles(strip_punctuation(text))


def _trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _consensus(matches: Sequence[bool]) -> float:
    """Return the mean over leave-one-out subsets of min(matches / 3, 1), in percent.

    Thirds are counted whole, since Python 3.12 adds up floats with other last bits than 3.11.
    """
    number = sum(matches)
    return 100.0 * sum(min(3, number - match) for match in matches) / (3 * len(matches))


MIN_ANSWERS = 4
"""Human answers that the official accuracy needs to reach 100: three, and the one left out."""


def ceiling(references: Sequence[Sequence[str]]) -> float | None:
    """Return the highest mean accuracy of any answers; None where every sample has `MIN_ANSWERS`.

    With fewer, even the answer that all humans gave scores 0, 33 or 67.

    >>> ceiling([["red"]]), ceiling([["red"], ["red"] * 10]), ceiling([["red"] * 10])
    (0.0, 50.0, None)
    """
    if not references or all(len(answers) >= MIN_ANSWERS for answers in references):
        return None
    best = [max((vqa_accuracy(a, answers) for a in answers), default=0.0) for answers in references]
    return sum(best) / len(best)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the official accuracy of one answer, in percent: 0, 30, 60, 90 or 100.

    Nothing is normalised where all humans gave the same answer, which is how the official code
    works (its issue 14): then "Yes" does not match "yes". With three answers or fewer, 100 is out
    of reach (`ceiling`); `exact_match` suits such data.

    Args:
        prediction: the model's answer.
        answers: the human answers, ten in VQAv2.

    >>> vqa_accuracy("two", ["2", "2", "two", "3", "3", "3", "3", "3", "3", "3"])
    90.0
    >>> vqa_accuracy("Yes", ["yes"] * 10)
    0.0
    """
    prediction, humans = _trimmed(prediction), [_trimmed(answer) for answer in answers]
    if len(set(humans)) > 1:
        prediction, humans = normalise(prediction), [normalise(answer) for answer in humans]
    return _consensus([answer == prediction for answer in humans])


def vqa_accuracy_normalised(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy with the official steps applied to every answer always.

    No other tool's exactly: VLMEvalKit (0044c57) keeps the full stop of "2."; lmms-eval (0716c69)
    and MMF's M4C split off "'s" first, and lmms-eval leaves human answers that agree as they are.

    >>> vqa_accuracy_normalised("Yes", ["yes"] * 10)
    100.0
    """
    guess = normalise(_trimmed(prediction))
    return _consensus([normalise(_trimmed(answer)) == guess for answer in answers])


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 100 where the prediction, normalised, is one of the answers, else 0.

    For sets with one answer per question (GQA), where VQA accuracy would always be 0.

    Reference: lmms-eval's GQA task; Hudson and Manning 2019.

    >>> exact_match("The Dog.", ["dog"]), exact_match("dogs", ["dog"])
    (100.0, 0.0)
    """
    guess = normalise(prediction)
    return 100.0 if any(guess == normalise(answer) for answer in answers) else 0.0


def vqa_accuracy_pre2021(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy of the script before 2021.

    It normalised the prediction always, the human answers' punctuation only where they differ,
    and their digits and articles never.

    >>> vqa_accuracy_pre2021("two", ["two"] * 10)
    0.0
    """
    cleaned = digits_and_articles(strip_punctuation(_trimmed(prediction)))
    return _consensus([answer == cleaned for answer in _without_punctuation(answers)])


def vqa_accuracy_gvt(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy of GVT's script: a human answer inside the prediction is a match.

    Reference: TencentARC/GVT, `modules/evaluations/vqa_tools/vqa_eval.py`, at commit 40532be.

    >>> vqa_accuracy_gvt("a red and white sign", ["red"] * 10)
    100.0
    """
    text = normalise(_trimmed(prediction.lower())).lower()
    return _consensus([answer.lower() in text for answer in _without_punctuation(answers)])


def _without_punctuation(answers: Sequence[str]) -> Sequence[str]:
    """Return human answers as they are where they agree, else without punctuation."""
    return [strip_punctuation(a) for a in answers] if len(set(answers)) > 1 else answers
