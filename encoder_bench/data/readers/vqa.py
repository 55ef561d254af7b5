"""VQAv2, OK-VQA, TextVQA, VizWiz and GQA, in their official files.

Reference: Goyal et al. 2017 (arXiv 1612.00837); Marino et al. 2019 (arXiv 1906.00067); Singh et
al. 2019 (arXiv 1904.08920); Gurari et al. 2018 (arXiv 1802.08218); Hudson and Manning 2019 (arXiv
1902.09506).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_text
from encoder_bench.data.files import DataFiles
from encoder_bench.data.rows import Rows, Text, numbered, read_json, read_rows, unique
from encoder_bench.data.sample import Sample, Split

HELD_OUT_SHARE = 0.6
"""Of the images with questions, where only training images have any."""
UNANSWERED = ("test-dev2015", "test2015")
"""Sources whose answers are not public; the benchmark's server scores an uploaded file."""
VQAV2_SOURCES = {
    source: tuple(f"vqav2/v2_OpenEnded_mscoco_{part}_questions.json" for part in parts)
    for source, parts in {
        "vqav2": ("val2014", "train2014"),
        **{source: (source,) for source in UNANSWERED},
    }.items()
}
"""Where the training questions are the only ones, some of them are the test split."""
MORE_SOURCES = {
    "okvqa": ("okvqa/mscoco_val2014_annotations.json",),
    "textvqa": ("textvqa/TextVQA_0.5.1_val.json",),
    "vizwiz": ("vizwiz/val.json",),
    "gqa": ("gqa/testdev_balanced_questions.json",),
}
_PARTS: dict[Split, str] = {"train": "train", "test": "val"}


@dataclass(slots=True)
class _Question:
    question_id: int
    image_id: int
    question: Text


@dataclass(slots=True)
class _Answer:
    answer: Text


@dataclass(slots=True)
class _Annotation:
    question_id: int
    image_id: int
    answers: Rows[_Answer]
    multiple_choice_answer: Text = ""
    answer_type: str = ""
    question_type: str = ""


@dataclass(slots=True)
class _TextVqaRow:
    image_id: Text
    question_id: int
    question: Text
    answers: Rows[str]


@dataclass(slots=True)
class _VizWizRow:
    image: Text
    question: Text
    answers: Rows[_Answer]
    answer_type: str = ""


@dataclass(slots=True)
class _GqaTypes:
    structural: str = ""


@dataclass(slots=True)
class _GqaRow:
    imageId: Text  # noqa: N815  (the file's own name)
    question: Text
    answer: Text
    types: _GqaTypes = field(default_factory=_GqaTypes)


def vqav2_samples(files: DataFiles, task: str, source: str, split: Split) -> list[Sample]:
    """Return one sample per question; the public validation questions are the test split.

    The test split of `test-dev2015` and `test2015` has no references. Where a folder has training
    questions only, a fixed part of their images is the test split and the rest is the training
    split, so that no image is in both.
    """
    part = _part(files, source, split)
    if source in UNANSWERED and split == "test":
        path = files.require("vqav2", f"v2_OpenEnded_mscoco_{source}_questions.json")
        rows, samples = read_rows(path, _Question, "questions"), []
        unique(path, rows, "question_id")
        for where, row in numbered(path, rows):
            image = files.image(row.image_id, where, split="test")
            samples.append(Sample(f"{task}/{row.question_id}", task, *image, row.question, (), ""))
        return samples
    if any(files.find("vqav2", f"v2_{name}.json") for name in _names("val")):
        return _paired(files, task, part, "vqav2")
    samples = _paired(files, task, "train", "vqav2")
    return [s for s in samples if is_held_out(s.image_id) == (split == "test")]


def is_held_out(image_id: int | str) -> bool:
    """Return whether a training image belongs to the held-out test part; fixed for all seeds."""
    return int(hash_text("vqa-held-out", str(image_id))[:8], 16) / 2**32 < HELD_OUT_SHARE


def _part(files: DataFiles, source: str, split: Split) -> str:
    if split not in _PARTS:
        raise DataError(f"{files.root}: {source} has no third public split; use train or test")
    return _PARTS[split]


def _names(part: str) -> tuple[str, str]:
    return f"OpenEnded_mscoco_{part}2014_questions", f"mscoco_{part}2014_annotations"


def _paired(files: DataFiles, task: str, part: str, folder: str) -> list[Sample]:
    """Return the samples of a file of questions and one of annotations, VQAv2's or OK-VQA's."""
    own = folder == "vqav2"
    asked, answered = (files.require(folder, f"{'v2_' * own}{name}.json") for name in _names(part))
    questions = unique(asked, read_rows(asked, _Question, "questions"), "question_id")
    annotations = read_rows(answered, _Annotation, "annotations")
    missing = sorted(questions.keys() - unique(answered, annotations, "question_id").keys())
    if missing:
        raise DataError(
            f"{answered}: no annotation for {len(missing)} questions, the first 'question_id' "
            f"{missing[0]}"
        )
    samples = []
    for where, row in numbered(answered, annotations):
        question = questions.get(row.question_id)
        if question is None:
            raise DataError(f"{where}: 'question_id' {row.question_id} has no question")
        if question.image_id != row.image_id:
            raise DataError(f"{where}: another 'image_id' than its question has in {asked}")
        answers = tuple(each.answer for each in row.answers)
        facets = {"answer_type": row.answer_type} if own else {}
        if own and not row.multiple_choice_answer:
            raise DataError(f"{where}: no 'multiple_choice_answer'")
        samples.append(
            Sample(
                f"{task}/{row.question_id}",
                task,
                *files.image(row.image_id, where, split=part),
                question=question.question,
                references=answers,
                target=row.multiple_choice_answer if own else _commonest(answers),
                facets={**facets, "question_type": row.question_type},
            )
        )
    return samples


def more_samples(files: DataFiles, task: str, source: str, split: Split) -> list[Sample]:
    """Return one sample per question; the public validation questions are the test split."""
    part = _part(files, source, split)
    if source == "okvqa":
        return _paired(files, task, part, "okvqa")
    read = {"textvqa": _textvqa, "vizwiz": _vizwiz, "gqa": _gqa}[source]
    samples = []
    for where, number, folders, name, question, answers, facets in read(files, part):
        there = (folder for folder in folders if (files.root / folder / name).is_file())
        image = files.image(f"{next(there, folders[0])}/{name}", where)
        target = _commonest(answers)
        samples.append(
            Sample(f"{task}/{number}", task, *image, question, tuple(answers), target, facets)
        )
    return samples


_Asked = Iterator[
    tuple[str, int | str, tuple[str, ...], str, str, Sequence[str], dict[str, str | int]]
]
"""Row in words, number, folders and name of the image, question, answers and facets."""


def _textvqa(files: DataFiles, part: str) -> _Asked:
    path = files.require("textvqa", f"TextVQA_0.5.1_{part}.json")
    folders = ("textvqa/train_images", "train_images", "textvqa/images")
    for where, row in numbered(path, read_rows(path, _TextVqaRow, "data")):
        name = f"{row.image_id}.jpg"
        yield where, row.question_id, folders, name, row.question, row.answers, {}


def _vizwiz(files: DataFiles, part: str) -> _Asked:
    path = files.require("vizwiz", f"{part}.json")
    folders = (f"vizwiz/{part}", part, "vizwiz/images")
    for number, (where, row) in enumerate(numbered(path, read_json(path, list[_VizWizRow]))):
        answers, facets = [each.answer for each in row.answers], {"answer_type": row.answer_type}
        yield where, number, folders, row.image, row.question, answers, {**facets}


def _gqa(files: DataFiles, part: str) -> _Asked:
    name = "testdev" if part == "val" else part
    path = files.require("gqa", f"{name}_balanced_questions.json")
    folders = ("gqa/images", "images")
    for number, row in read_json(path, dict[str, _GqaRow]).items():
        where, facets = f"{path}: question {number}", {"question_type": row.types.structural}
        yield where, number, folders, f"{row.imageId}.jpg", row.question, [row.answer], {**facets}


def _commonest(answers: Sequence[str]) -> str:
    return Counter(answers).most_common(1)[0][0]
