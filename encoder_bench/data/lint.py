"""What is wrong with questions that can be read: leaks, skew, missing answers, repeats."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoder_bench.data.sample import Sample
from encoder_bench.data.sample_table import SampleTable
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


def text_leak(samples: SampleTable, seed: int = 0) -> str | None:
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
        samples = samples.take(np.sort(chosen))
    images = [str(sample.image_id) for sample in samples]
    common = [text for text, _ in samples.counts("target").most_common(_MAX_CLASSES)]
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


def majority_leak(samples: SampleTable) -> str | None:
    """Report where the commonest answer to a question on other images beats the commonest of all.

    Knowing the answers, the commonest to each question is right the more often the fewer samples a
    question has, whether or not the text tells anything; so it is told but decides nothing.
    """
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_image: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    rows = list(samples.pairs("question", "target"))
    images = samples.column("image").to_pylist()
    keys = [(image, question) for image, (question, _) in zip(images, rows, strict=True)]
    for key, (question, target) in zip(keys, rows, strict=True):
        by_question[question][target] += 1
        by_image[key][target] += 1
    ((everywhere, constant),) = samples.counts("target").most_common(1)
    right = 0
    for key, (question, target) in zip(keys, rows, strict=True):
        elsewhere = by_question[question] - by_image[key]
        guess = max(elsewhere, key=elsewhere.__getitem__) if elsewhere else everywhere
        right += guess == target
    best = sum(max(counts.values()) for counts in by_question.values())
    share = 100 / len(samples)
    if (right - constant) * share < _LEAK_POINTS:
        return None
    return (
        f"the commonest answer to the same question on other images is right in "
        f"{right * share:.1f}%, the constant answer in {constant * share:.1f}% "
        f"({len(by_question)} different questions; knowing the answers, {best * share:.1f}%)"
    )


def skew(samples: SampleTable) -> str | None:
    """Report one answer that is right more often than not, or yes and no out of balance."""
    counts = samples.counts("target")
    answer, number = counts.most_common(1)[0]
    share = 100 * number / len(samples)
    yes_no = {text.strip(" .").lower() for text in counts} <= {"yes", "no"}
    if share <= (50 + _SKEW_POINTS if yes_no else _CONSTANT_PERCENT):
        return None
    return f"the constant answer {answer!r} is right in {share:.1f}% of {len(samples)} samples"


def missing_classes(samples: SampleTable) -> str | None:
    """Report counts without a zero, or with gaps, and yes/no sets with one of them alone."""
    targets = {text.strip(" .").lower() for text in samples.counts("target")}
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


def repeats(samples: SampleTable, *, conflicting: bool = False) -> str | None:
    """Report the same question about the same image, with one answer or with different ones."""
    words = pc.binary_join(pc.utf8_split_whitespace(samples.column("question")), " ")
    table = pa.table(
        {
            "image": samples.column("image"),
            "question": pc.utf8_lower(pc.utf8_trim_whitespace(words)),
            "target": samples.column("target"),
            "row": np.arange(len(samples)),
        }
    )
    wanted = [("row", "count"), ("row", "min"), ("target", "count_distinct")]
    groups = table.group_by(["image", "question"]).aggregate(wanted)
    several = pc.greater(groups["row_count"], 1)
    alike = pc.equal(groups["target_count_distinct"], 1)
    chosen = groups.filter(pc.and_(several, pc.xor(alike, conflicting)))
    if not len(chosen):
        return None
    count = pc.sum(chosen["row_count"]).as_py() - len(chosen)
    first = table.slice(pc.min(chosen["row_min"]).as_py())
    same = pc.and_(*(pc.equal(first[name], first[name][0]) for name in ("image", "question")))
    one, other = (samples[row.as_py()] for row in first["row"].filter(same)[:2])
    answers = "different answers" if conflicting else "the same answer"
    return (
        f"{count} samples repeat a question about the same image with {answers}, the first "
        f"{other.sample_id} ({one.question!r})"
    )


_CHECKS: dict[str, Callable[[SampleTable], str | None]] = {
    "text-leak": text_leak,
    "majority-leak": majority_leak,
    "skew": skew,
    "missing-class": missing_classes,
    "duplicate": repeats,
    "conflict": functools.partial(repeats, conflicting=True),
}


def lint_samples(task: str, samples: Sequence[Sample]) -> list[Finding]:
    """Return all findings on the questions and answers of one task."""
    table = SampleTable.of(samples)
    asked = table.take(np.flatnonzero(pc.not_equal(table.column("question"), "").to_numpy()))
    found = {kind: check(asked) for kind, check in _CHECKS.items()} if asked else {}
    return [Finding(task, kind, message) for kind, message in found.items() if message]
