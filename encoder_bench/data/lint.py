"""What is wrong with questions that can be read: leaks, skew, missing answers, repeats."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from encoder_bench.data.sample import Sample
from encoder_bench.metrics.statistics import bootstrap_interval, ratio

_MAX_QUESTIONS = 8_000
_MAX_CLASSES = 60
_FOLDS = 5
_LEAK_POINTS = 5.0
_SKEW_POINTS = 5.0
_CONSTANT_PERCENT = 50.0


class Finding(NamedTuple):
    """One thing that a reader of scores should know.

    Kinds are those of `_CHECKS`, and `overlap`, `near-duplicate`, `unreadable`, `version`.
    """

    task: str
    kind: str
    message: str


def text_leak(samples: Sequence[Sample], seed: int = 0) -> str | None:
    """Try to answer from the question's text alone: a linear classifier, cross-validated by image.

    Reported where it is right more often than the commonest answer, by more than five points and
    with the whole 95% interval of the difference above zero, clustered on images. Answers that are
    not among the sixty commonest are one class, which nobody gets right.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    if len(samples) > _MAX_QUESTIONS:
        chosen = np.random.default_rng(seed).choice(len(samples), _MAX_QUESTIONS, replace=False)
        samples = [samples[index] for index in sorted(chosen)]
    images = [str(sample.image_id) for sample in samples]
    common = [text for text, _ in Counter(s.target for s in samples).most_common(_MAX_CLASSES)]
    if len(common) < 2 or len(set(images)) < 2 * _FOLDS:
        return None
    questions = np.array([sample.question for sample in samples])
    targets = np.array([s.target if s.target in common else "" for s in samples])
    folds = list(GroupKFold(_FOLDS).split(questions, targets, images))
    if any(len(set(targets[train])) < 2 for train, _ in folds):
        return None
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), lowercase=False, token_pattern=r"\S+"),
        SGDClassifier(loss="log_loss", random_state=seed),
    )
    guesses = cross_val_predict(classifier, questions, targets, cv=folds)
    right, base = (guesses == targets) & (targets != ""), targets == common[0]
    difference = right.astype(np.float64) - base
    values = np.stack([difference, np.ones(len(samples))], axis=1)
    interval = bootstrap_interval(values, images, ratio, seed=seed)
    gain = 100 * float(difference.mean())
    if interval is None or gain < _LEAK_POINTS or interval[0] <= 0:
        return None
    return (
        f"a text-only classifier answers {100 * right.mean():.1f}% without the image, the "
        f"commonest answer {100 * base.mean():.1f}% ({len(samples)} questions, {_FOLDS}-fold by "
        f"image; gain {gain:.1f}, 95% interval {interval[0]:.1f} to {interval[1]:.1f})"
    )


def majority_leak(samples: Sequence[Sample]) -> str | None:
    """Report where the commonest answer to each question's text beats the commonest of all."""
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        by_question[sample.question][sample.target] += 1
    best = sum(max(counts.values()) for counts in by_question.values()) / len(samples)
    constant = max(Counter(s.target for s in samples).values()) / len(samples)
    repeated = sum(counts.total() for counts in by_question.values() if counts.total() > 1)
    if best - constant < _LEAK_POINTS / 100 or repeated < len(samples) / 2:
        return None
    return (
        f"the per-question majority scores {100 * best:.1f}% knowing the answers (an oracle), "
        f"the constant answer {100 * constant:.1f}% ({len(by_question)} different questions)"
    )


def skew(samples: Sequence[Sample]) -> str | None:
    """Report one answer that is right more often than not, or yes and no out of balance."""
    counts = Counter(sample.target for sample in samples)
    answer, number = counts.most_common(1)[0]
    share = 100 * number / len(samples)
    yes_no = {text.strip(" .").lower() for text in counts} <= {"yes", "no"}
    if share <= (50 + _SKEW_POINTS if yes_no else _CONSTANT_PERCENT):
        return None
    return f"the constant answer {answer!r} is right in {share:.1f}% of {len(samples)} samples"


def missing_classes(samples: Sequence[Sample]) -> str | None:
    """Report counts without a zero, or with gaps, and yes/no sets with one of them alone."""
    targets = {sample.target.strip(" .").lower() for sample in samples}
    if targets in ({"yes"}, {"no"}):
        return f"every answer is {targets.pop()!r}"
    if not all(text.isdigit() for text in targets):
        return None
    numbers = {int(text) for text in targets}
    missing = [str(number) for number in range(max(numbers)) if number not in numbers]
    if not missing:
        return None
    span = f"there are {min(numbers)} to {max(numbers)}"
    return f"no sample has the answer {', '.join(missing)} ({span})"


def repeats(samples: Sequence[Sample], *, conflicting: bool = False) -> str | None:
    """Report the same question about the same image, with one answer or with different ones."""
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[str(sample.image_id), " ".join(sample.question.split()).lower()].append(sample)
    chosen = [
        group
        for group in groups.values()
        if len(group) > 1 and (len({sample.target for sample in group}) > 1) == conflicting
    ]
    if not chosen:
        return None
    count, first = sum(len(group) - 1 for group in chosen), chosen[0]
    words = "different answers" if conflicting else "the same answer"
    return (
        f"{count} samples repeat a question about the same image with {words}, the first "
        f"{first[1].sample_id} ({first[0].question!r})"
    )


_CHECKS: dict[str, Callable[[Sequence[Sample]], str | None]] = {
    "text-leak": text_leak,
    "majority-leak": majority_leak,
    "skew": skew,
    "missing-class": missing_classes,
    "duplicate": repeats,
    "conflict": functools.partial(repeats, conflicting=True),
}


def lint_samples(task: str, samples: Sequence[Sample]) -> list[Finding]:
    """Return all findings on the questions and answers of one task."""
    asked = [sample for sample in samples if sample.question]
    found = {kind: check(asked) for kind, check in _CHECKS.items()} if asked else {}
    return [Finding(task, kind, message) for kind, message in found.items() if message]
