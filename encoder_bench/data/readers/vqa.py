"""VQAv2, OK-VQA, TextVQA, VizWiz, GQA and POPE, in their official files.

Reference: Goyal et al. 2017 (arXiv 1612.00837); Marino et al. 2019 (arXiv 1906.00067); Singh et
al. 2019 (arXiv 1904.08920); Gurari et al. 2018 (arXiv 1802.08218); Hudson and Manning 2019 (arXiv
1902.09506); Li et al. 2023 (arXiv 2305.10355), the JSON lines of RUCAIBox/POPE.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from encoder_bench.base.errors import DataError, NoTrainSplitError
from encoder_bench.base.hashing import hash_text
from encoder_bench.data.files import DataFiles, coco_id
from encoder_bench.data.rows import (
    Row,
    Rows,
    Text,
    parse_json,
    read_json_bytes,
    read_rows,
    unique,
)
from encoder_bench.data.sample import OFFICIAL_PART, Sample, Split

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
_POPE_SETTINGS = ("random", "popular", "adversarial")
POPE_SOURCES: dict[str, tuple[str, ...]] = {
    **{setting: (f"pope/coco_pope_{setting}.json",) for setting in _POPE_SETTINGS},
    "all": (),
}


class _Question(Row):
    question_id: int
    image_id: int
    question: Text


class _Answer(Row):
    answer: Text


class _Annotation(Row):
    question_id: int
    image_id: int
    answers: Rows[_Answer]
    multiple_choice_answer: str = ""
    answer_type: str = ""
    question_type: str = ""


def vqav2_samples(files: DataFiles, task: str, source: str, split: Split) -> Iterator[Sample]:
    """Yield one sample per question; the public validation questions are the test split.

    The test split of `test-dev2015` and `test2015` has no references. Where a folder has training
    questions only, a fixed part of their images is the test split and the rest is the training
    split, so that no image is in both.
    """
    if source in UNANSWERED and split == "test":
        path = files.require("vqav2", f"v2_OpenEnded_mscoco_{source}_questions.json")
        for where, row in unique(read_rows(path, _Question, "questions"), "question_id"):
            image = files.image(row.image_id, where, split="test")
            yield Sample(f"{task}/{row.question_id}", task, *image, row.question, (), "")
    elif not holds_out(files):
        yield from _paired(files, task, OFFICIAL_PART[split], "vqav2")
    else:
        for sample in _paired(files, task, "train", "vqav2"):
            if is_held_out(sample.image_id) == (split == "test"):
                yield sample


def holds_out(files: DataFiles) -> bool:
    """Return whether a part of VQAv2's training images is the test split, for want of another."""
    return not any(files.find("vqav2", f"v2_{name}.json") for name in _names("val"))


def is_held_out(image_id: int | str) -> bool:
    """Return whether a training image belongs to the held-out test part; fixed for all seeds."""
    return int(hash_text("vqa-held-out", str(image_id))[:8], 16) / 2**32 < HELD_OUT_SHARE


def _names(part: str) -> tuple[str, str]:
    return f"OpenEnded_mscoco_{part}2014_questions", f"mscoco_{part}2014_annotations"


def _paired(files: DataFiles, task: str, part: str, folder: str) -> Iterator[Sample]:
    """Yield the samples of a file of questions and one of annotations, VQAv2's or OK-VQA's."""
    own = folder == "vqav2"
    asked, answered = (files.require(folder, f"{'v2_' * own}{name}.json") for name in _names(part))
    rows = unique(read_rows(asked, _Question, "questions"), "question_id")
    questions = {row.question_id: row for _, row in rows}
    for where, row in unique(read_rows(answered, _Annotation, "annotations"), "question_id"):
        question = questions.pop(row.question_id, None)
        if question is None:
            raise DataError(f"{where}: 'question_id' {row.question_id} has no question")
        if question.image_id != row.image_id:
            raise DataError(f"{where}: another 'image_id' than its question has in {asked}")
        if own and not row.multiple_choice_answer.strip():
            raise DataError(f"{where}: no 'multiple_choice_answer'")
        answers = tuple(entry.answer for entry in row.answers)
        facets = {"answer_type": row.answer_type} if own else {}
        yield Sample(
            f"{task}/{row.question_id}",
            task,
            *files.image(row.image_id, where, split=part),
            question=question.question,
            references=answers,
            target=row.multiple_choice_answer if own else _commonest(answers),
            facets=facets | {"question_type": row.question_type},
        )
    if questions:
        raise DataError(
            f"{answered}: no annotation for {len(questions)} questions, the first 'question_id' "
            f"{min(questions)}"
        )


class _Row(Row, kw_only=True):
    image: Text
    question: Text
    answers: Sequence[str | _Answer]
    answer: str = ""
    question_id: int | None = None
    answer_type: str = ""


class _TextVqaRow(_Row, kw_only=True):
    image: Text = msgspec.field(name="image_id")
    answers: Rows[str]
    question_id: int


class _VizWizRow(_Row, kw_only=True):
    answers: Rows[_Answer]


class _GqaTypes(Row):
    structural: str = ""


class _GqaRow(_Row, kw_only=True):
    image: Text = msgspec.field(name="imageId")
    answers: list[str] = msgspec.field(default_factory=list)
    answer: Text
    types: _GqaTypes = msgspec.field(default_factory=_GqaTypes)

    @property
    def question_type(self) -> str:
        """What kind of question it is."""
        return self.types.structural


class _Layout(NamedTuple):
    """Row, annotation file, its key, folders and ending of its images, and the facet.

    {part} is train or val. Without a key the file is the list of rows; None: rows by their id.
    """

    row: type[_Row]
    file: str
    key: str | None
    folders: tuple[str, ...]
    ending: str
    facet: str


_TEXTVQA, _GQA = (
    ("textvqa/train_images", "train_images", "textvqa/images"),
    ("gqa/images", "images"),
)
_VIZWIZ = ("vizwiz/{part}", "{part}", "vizwiz/images")
_LAYOUTS = {
    "textvqa": _Layout(_TextVqaRow, "TextVQA_0.5.1_{part}.json", "data", _TEXTVQA, ".jpg", ""),
    "vizwiz": _Layout(_VizWizRow, "{part}.json", "", _VIZWIZ, "", "answer_type"),
    "gqa": _Layout(_GqaRow, "{part}_balanced_questions.json", None, _GQA, ".jpg", "question_type"),
}


def more_samples(files: DataFiles, task: str, source: str, split: Split) -> Iterator[Sample]:
    """Yield one sample per question; the public validation questions are the test split."""
    part = OFFICIAL_PART[split]
    if source == "okvqa":
        yield from _paired(files, task, part, "okvqa")
        return
    layout = _LAYOUTS[source]
    part = "testdev" if (source, split) == ("gqa", "test") else part
    path = files.require(source, layout.file.format(part=part))
    for index, (where, row) in enumerate(read_rows(path, layout.row, layout.key)):
        name = f"{row.image}{layout.ending}"
        names = [f"{folder.format(part=part)}/{name}" for folder in layout.folders]
        image = files.image(files.first(names), where)
        number = where.removeprefix(f"{path}: row ") if layout.key is None else index
        name = f"{task}/{number if row.question_id is None else row.question_id}"
        given = (entry if isinstance(entry, str) else entry.answer for entry in row.answers)
        answers = tuple(given) or (row.answer,)
        facets = {layout.facet: getattr(row, layout.facet)} if layout.facet else {}
        yield Sample(name, task, *image, row.question, answers, _commonest(answers), facets)


def _commonest(answers: Sequence[str]) -> str:
    return Counter(answers).most_common(1)[0][0]


class _PopeQuestion(Row):
    image: Text
    label: str
    text: Text
    question_id: int | str | None = None


def pope_samples(files: DataFiles, task: str, source: str, split: Split) -> Iterator[Sample]:
    """Yield one sample per question of one setting, or of all three (`source = "all"`)."""
    if split != "test":
        raise NoTrainSplitError(f"{files.root}: POPE has no {split} split; train on MCI instead")
    for setting in _POPE_SETTINGS if source == "all" else (source,):
        path = files.require("pope", f"coco_pope_{setting}.json")
        lines = enumerate(read_json_bytes(path).split(b"\n"), start=1)
        asked = [(f"{path}:{number}", line) for number, line in lines if line.strip()]
        if not asked:
            raise DataError(f"{path}: is empty")
        for index, (where, line) in enumerate(asked):
            row = parse_json(line, _PopeQuestion, where)
            label = row.label.lower()
            if label not in ("yes", "no"):
                raise DataError(f"{where}: 'label' is {row.label!r}, neither yes nor no")
            number = coco_id(row.image)
            image_id = row.image if number is None else number
            image = files.image(image_id, where, split="val", name=row.image)
            name = f"{task}/{setting}/{index if row.question_id is None else row.question_id}"
            answer, facets = f"{label.capitalize()}.", {"setting": setting, "answer": label}
            yield Sample(name, task, *image, row.text, (answer,), answer, {**facets})
