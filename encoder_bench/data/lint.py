"""`data check` and `data lint`: whether data folders can be read, and what is wrong with them."""

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoder_bench.base.errors import DataError, NoTrainSplitError
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.fetch import known_version
from encoder_bench.data.folder import DataFolder, check_disjoint
from encoder_bench.data.images import fingerprints, load_image, near_duplicates, same_files
from encoder_bench.data.sample import Sample, Split
from encoder_bench.data.sample_table import SampleTable
from encoder_bench.metrics.statistics import bootstrap_interval, ratio

PROBLEM = "PROBLEM  "
_SHOWN = 3
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
    question has, whether or not the text gives it away: that figure is reported and decides
    nothing.
    """
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_image: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    names = ("image", "question", "target")
    rows = list(zip(*(samples.column(name).to_pylist() for name in names), strict=True))
    for image, question, target in rows:
        by_question[question][target] += 1
        by_image[image, question][target] += 1
    ((everywhere, constant),) = samples.counts("target").most_common(1)
    right = 0
    for image, question, target in rows:
        elsewhere = by_question[question] - by_image[image, question]
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
    if not all(text.isdecimal() for text in targets):
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


def check_folder(
    folder: DataFolder, tasks: Mapping[str, TaskRecipe], *, decode: bool, reporter: Reporter
) -> Iterator[str]:
    """Read both splits of all tasks, as a run would, and yield lines; problems begin with PROBLEM.

    The folder is opened with `images_required=False`; images that are there are decoded on request.
    """
    read = _Splits(folder, tasks)
    for name, split, samples in read:
        if isinstance(samples, NoTrainSplitError):
            yield f"{name:<12} {split:<6} {samples}"
        elif isinstance(samples, DataError):
            yield f"{PROBLEM}{samples}"
        else:
            images = len(samples.images())
            yield f"{name:<12} {split:<6} {len(samples):>7} samples {images:>7} images"
    for name, version in folder.versions().items():
        yield f"{name} is {version}"
    train, test = read.joined("train"), read.joined("test")
    if missing := [*(test.missing() | train.missing()).values()]:
        yield f"{PROBLEM}{len(missing)} images are missing, the first: {missing[0]}"
    if train and test:
        try:
            check_disjoint(train, test)
            yield "training and test share no image"
        except DataError as error:
            yield f"{PROBLEM}{error}"
    if decode:
        paths = sorted({*_files(train), *_files(test)})
        with reporter.phase("images", len(paths), "images") as phase:
            for path in paths:
                try:
                    load_image(path)
                except DataError as error:
                    yield f"{PROBLEM}{error}"
                phase.advance()
        yield f"{len(paths)} images decoded"


def lint_folder(
    folder: DataFolder, tasks: Mapping[str, TaskRecipe], *, compare: bool, reporter: Reporter
) -> tuple[list[Finding], list[str]]:
    """Return the findings of every task, and a line for each split that could not be read.

    The folder is opened with `images_required=False`; images that are there are compared on
    request, for overlap, near duplicates and damage.
    """
    findings: list[Finding] = []
    skipped: list[str] = []
    read = _Splits(folder, tasks)
    for name, split, samples in read:
        if isinstance(samples, DataError):
            skipped.append(f"{name} {split}: {samples}")
        elif split == "test":
            findings += lint_samples(name, samples)
            path = folder.files.find("gvtbench", f"{tasks[name].source}.json")
            known = known_version(path) if path and tasks[name].reader == "gvtbench" else None
            if path and known and known.caution:
                message = f"{path.name} is {known.name}: {known.caution}"
                findings.append(Finding(name, "version", message))
    train, test = read.joined("train"), read.joined("test")
    findings += _unreadable([*(train.missing() | test.missing()).values()], "missing")
    if compare:
        findings += _image_findings(train, test, reporter)
    return findings, skipped


class _Splits:
    """Both splits of all tasks, read as they are iterated over."""

    def __init__(self, folder: DataFolder, tasks: Mapping[str, TaskRecipe]) -> None:
        self._folder, self._tasks = folder, tasks
        self._read: dict[Split, list[SampleTable]] = {"train": [], "test": []}

    def __iter__(self) -> Iterator[tuple[str, Split, SampleTable | DataError]]:
        for (name, recipe), split in itertools.product(self._tasks.items(), get_args(Split)):
            found: SampleTable | DataError
            try:
                found = self._folder.task_samples(name, recipe, split)
                self._read[split].append(found)
            except DataError as error:
                found = error
            yield name, split, found

    def joined(self, split: Split) -> SampleTable:
        """Return the samples of all tasks that could be read so far."""
        return SampleTable.joined(self._read[split])


def _files(samples: SampleTable) -> list[Path]:
    return sorted(filter(Path.is_file, samples.image_paths()))


def _image_findings(train: SampleTable, test: SampleTable, reporter: Reporter) -> Iterator[Finding]:
    ours, theirs = _files(train), _files(test)
    read, unreadable = fingerprints(sorted({*ours, *theirs}), reporter)
    yield from _unreadable(unreadable, "unreadable")
    shared = sorted({*train.images()} & {*test.images()}, key=str)
    if shared:
        message = f"{len(shared)} images are in train and test by id, the first {shared[0]}"
        yield Finding("images", "overlap", message)
    halves = [{path: read[path] for path in paths if path in read} for paths in (ours, theirs)]
    if pairs := same_files(*halves):
        first = " and ".join(path.name for path in pairs[0])
        message = f"{len(pairs)} test images have the bytes of a training image, the first {first}"
        yield Finding("images", "overlap", message)
    if near := near_duplicates(*halves):
        one, other, bits = near[0]
        count = len({path for _, path, _ in near})
        message = f"{count} test images nearly equal a training image, the first pair {one.name} "
        message += f"and {other.name}, {bits} of 256 bits apart"
        yield Finding("images", "near-duplicate", message)


def _unreadable(lines: list[str], word: str) -> list[Finding]:
    more = len(lines) - _SHOWN
    shown = [*lines[:_SHOWN], *([f"and {more} more {word} images"] if more > 0 else [])]
    return [Finding("images", "unreadable", line) for line in shown]
