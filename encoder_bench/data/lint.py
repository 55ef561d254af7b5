"""What is wrong with a data set even though it can be read: leaks, skew, duplicates, overlap.

What belongs here: one function a finding, each on samples alone. Images are compared in
`similarity.py`; whether the files can be read at all is `check.py`'s question.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoder_bench.data.sample import Sample
from encoder_bench.metrics.statistics import bootstrap_interval, ratio

_MOST_QUESTIONS = 8_000
_MOST_CLASSES = 60
_FOLDS = 5
_LEAK_POINTS = 5.0
_SKEW_POINTS = 5.0
_CONSTANT_PERCENT = 50.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a reader of scores should know.

    Attributes:
        task: of the samples.
        kind: `text-leak`, `majority-leak`, `skew`, `missing-class`, `duplicate`, `conflict`,
            `overlap`, `near-duplicate`, `unreadable`, `version`.
        message: what was found, with its figures.
    """

    task: str
    kind: str
    message: str


def text_leak(task: str, samples: Sequence[Sample], seed: int = 0) -> list[Finding]:
    """Try to answer from the question's text alone: a linear classifier, cross-validated by image.

    Flagged where it is right more often than the commonest answer, by more than five points and
    with the whole 95% interval of the difference above zero, clustered on images.
    """
    asked = _subset([sample for sample in samples if sample.question], seed)
    images = np.array([str(sample.image_id) for sample in asked])
    common = [text for text, _ in Counter(s.target for s in asked).most_common(_MOST_CLASSES)]
    if len(common) < 2 or len(set(images)) < 2 * _FOLDS:
        return []
    targets = np.array([s.target if s.target in common else "" for s in asked])
    questions = np.array([sample.question for sample in asked])
    right, base = _cross_validated(questions, targets, images, seed)
    values = np.stack([right - base, np.ones(len(asked))], axis=1)
    interval = bootstrap_interval(values, list(images), ratio, seed=seed)
    gain = 100 * float((right - base).mean())
    if interval is None or gain < _LEAK_POINTS or interval[0] <= 0:
        return []
    return [
        Finding(
            task,
            "text-leak",
            f"a text-only classifier answers {100 * right.mean():.1f}% without the image, the "
            f"commonest answer {100 * base.mean():.1f}% ({len(asked)} questions, {_FOLDS}-fold by "
            f"image; gain {gain:.1f}, 95% interval {interval[0]:.1f} to {interval[1]:.1f})",
        )
    ]


_Texts = NDArray[np.str_]


def _cross_validated(
    questions: _Texts, targets: _Texts, images: _Texts, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return which samples a text-only classifier, and which the commonest answer, gets right.

    A target outside the commonest classes is empty, and nobody gets it right.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline

    right = np.zeros(len(questions))
    base = np.zeros(len(questions))
    for train, test in GroupKFold(_FOLDS).split(questions, targets, images):
        seen = Counter(text for text in targets[train] if text)
        if not seen:
            continue
        base[test] = targets[test] == seen.most_common(1)[0][0]
        if len(set(targets[train])) < 2:
            right[test] = base[test]
            continue
        classifier = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), lowercase=False, token_pattern=r"\S+"),
            SGDClassifier(loss="log_loss", random_state=seed),
        )
        classifier.fit(questions[train], targets[train])
        guesses = classifier.predict(questions[test])
        right[test] = (guesses == targets[test]) & (targets[test] != "")
    return right, base


def majority_leak(task: str, samples: Sequence[Sample]) -> list[Finding]:
    """Flag where the commonest answer to each question's own text beats the commonest of all."""
    asked = [sample for sample in samples if sample.question]
    if not asked:
        return []
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in asked:
        by_question[sample.question][sample.target] += 1
    best = sum(counts.most_common(1)[0][1] for counts in by_question.values()) / len(asked)
    constant = Counter(s.target for s in asked).most_common(1)[0][1] / len(asked)
    repeated = sum(sum(c.values()) for c in by_question.values() if sum(c.values()) > 1)
    if best - constant < _LEAK_POINTS / 100 or repeated < len(asked) / 2:
        return []
    return [
        Finding(
            task,
            "majority-leak",
            f"the per-question majority scores {100 * best:.1f}%, the constant answer "
            f"{100 * constant:.1f}% ({len(by_question)} different questions)",
        )
    ]


def skew(task: str, samples: Sequence[Sample]) -> list[Finding]:
    """Flag one answer that is right more often than not, or yes and no out of balance."""
    counts = Counter(sample.target for sample in samples if sample.question)
    total = sum(counts.values())
    if not total:
        return []
    answer, number = counts.most_common(1)[0]
    share = 100 * number / total
    words = {text.strip(" .").lower() for text in counts}
    limit = 50 + _SKEW_POINTS if words <= {"yes", "no"} else _CONSTANT_PERCENT
    if share <= limit:
        return []
    return [
        Finding(
            task,
            "skew",
            f"the constant answer {answer!r} is right in {share:.1f}% of {total} samples",
        )
    ]


def missing_classes(task: str, samples: Sequence[Sample]) -> list[Finding]:
    """Flag counts without a zero, or with gaps, and yes/no sets with one of them alone."""
    targets = {sample.target.strip(" .").lower() for sample in samples if sample.question}
    if targets and all(text.isdigit() for text in targets):
        numbers = {int(text) for text in targets}
        missing = [n for n in range(max(numbers)) if n not in numbers]
        if missing:
            return [
                Finding(
                    task,
                    "missing-class",
                    f"no sample has the answer {', '.join(map(str, missing))} (there are "
                    f"{min(numbers)} to {max(numbers)})",
                )
            ]
    if targets in ({"yes"}, {"no"}):
        return [Finding(task, "missing-class", f"every answer is {targets.pop()!r}")]
    return []


def repeats(task: str, samples: Sequence[Sample]) -> list[Finding]:
    """Flag the same question about the same image, with the same answer or with another one."""
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.question:
            groups[str(sample.image_id), " ".join(sample.question.split()).lower()].append(sample)
    twice = [group for group in groups.values() if len(group) > 1]
    findings = []
    for kind, words, chosen in (
        ("duplicate", "the same answer", [g for g in twice if len({s.target for s in g}) == 1]),
        ("conflict", "different answers", [g for g in twice if len({s.target for s in g}) > 1]),
    ):
        if chosen:
            surplus = sum(len(group) - 1 for group in chosen)
            first = chosen[0]
            findings.append(
                Finding(
                    task,
                    kind,
                    f"{surplus} samples repeat a question about the same image with {words}, the "
                    f"first {first[1].sample_id} ({first[0].question!r})",
                )
            )
    return findings


CHECKS: tuple[Callable[[str, Sequence[Sample]], list[Finding]], ...] = (
    text_leak,
    majority_leak,
    skew,
    missing_classes,
    repeats,
)


def lint_samples(task: str, samples: Sequence[Sample]) -> list[Finding]:
    """Return all findings on the questions and answers of one task."""
    return [finding for check in CHECKS for finding in check(task, samples)]


def _subset(samples: list[Sample], seed: int) -> list[Sample]:
    if len(samples) <= _MOST_QUESTIONS:
        return samples
    chosen = np.random.default_rng(seed).choice(len(samples), _MOST_QUESTIONS, replace=False)
    return [samples[index] for index in sorted(chosen)]
