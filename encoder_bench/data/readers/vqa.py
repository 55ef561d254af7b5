"""VQAv2, OK-VQA, TextVQA, VizWiz and GQA, in their official files.

Reference: Goyal et al. 2017 (arXiv 1612.00837); Marino et al. 2019 (arXiv 1906.00067); Singh et
al. 2019 (arXiv 1904.08920); Gurari et al. 2018 (arXiv 1802.08218); Hudson and Manning 2019 (arXiv
1902.09506).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_text
from encoder_bench.data.files import (
    DataFiles,
    Row,
    entries,
    integer,
    numbered,
    read_json,
    rows_of,
    text,
    texts,
    unique_ids,
)
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


def vqav2_samples(files: DataFiles, task: str, source: str, split: Split) -> list[Sample]:
    """Return one sample per question; the public validation questions are the test split.

    The test split of `test-dev2015` and `test2015` has no references. Where a folder has training
    questions only, a fixed part of their images is the test split and the rest is the training
    split, so that no image is in both.
    """
    part = _part(files, source, split)
    if source in UNANSWERED and split == "test":
        return _unanswered(files, task, source)
    if any(files.find("vqav2", f"v2_{name}.json") for name in _names("val")):
        return _paired(files, task, part, "vqav2", "v2_")
    samples = _paired(files, task, "train", "vqav2", "v2_")
    return [s for s in samples if is_held_out(s.image_id) == (split == "test")]


def more_samples(files: DataFiles, task: str, source: str, split: Split) -> list[Sample]:
    """Return one sample per question; the public validation questions are the test split."""
    part = _part(files, source, split)
    if source == "okvqa":
        return _paired(files, task, part, "okvqa", "")
    return {"textvqa": _textvqa, "vizwiz": _vizwiz, "gqa": _gqa}[source](files, task, part)


def is_held_out(image_id: int | str) -> bool:
    """Return whether a training image belongs to the held-out test part; fixed for all seeds."""
    return int(hash_text("vqa-held-out", str(image_id))[:8], 16) / 2**32 < HELD_OUT_SHARE


def _part(files: DataFiles, source: str, split: Split) -> str:
    if split not in _PARTS:
        raise DataError(f"{files.root}: {source} has no third public split; use train or test")
    return _PARTS[split]


def _names(part: str) -> tuple[str, str]:
    return f"OpenEnded_mscoco_{part}2014_questions", f"mscoco_{part}2014_annotations"


def _paired(files: DataFiles, task: str, part: str, folder: str, prefix: str) -> list[Sample]:
    """Return the samples of a file of questions and one of annotations, VQAv2's or OK-VQA's."""
    asked, answered = (files.require(folder, f"{prefix}{name}.json") for name in _names(part))
    questions = unique_ids(asked, rows_of(asked, "questions"), "question_id")
    annotations = rows_of(answered, "annotations")
    missing = sorted(questions.keys() - unique_ids(answered, annotations, "question_id").keys())
    if missing:
        raise DataError(
            f"{answered}: no annotation for {len(missing)} questions, the first 'question_id' "
            f"{missing[0]}"
        )
    samples = []
    for where, row in numbered(answered, annotations):
        number = row["question_id"]
        if number not in questions:
            raise DataError(f"{where}: 'question_id' {number} has no question")
        question, image_id = questions[number], integer(row, "image_id", where)
        if integer(question, "image_id", str(asked)) != image_id:
            raise DataError(f"{where}: another 'image_id' than its question has in {asked}")
        answers = texts(row, "answers", "answer", where)
        common = folder == "okvqa"
        facets = ("question_type",) if common else ("answer_type", "question_type")
        samples.append(
            Sample(
                f"{task}/{number}",
                task,
                *files.image(image_id, where, split=part),
                question=text(question, "question", str(asked)),
                references=answers,
                target=_commonest(answers)
                if common
                else text(row, "multiple_choice_answer", where),
                facets={facet: str(row.get(facet, "")) for facet in facets},
            )
        )
    return samples


def _unanswered(files: DataFiles, task: str, source: str) -> list[Sample]:
    path = files.require("vqav2", f"v2_OpenEnded_mscoco_{source}_questions.json")
    rows = rows_of(path, "questions")
    unique_ids(path, rows, "question_id")
    samples = []
    for where, row in numbered(path, rows):
        image = files.image(integer(row, "image_id", where), where, split="test")
        asked = text(row, "question", where)
        samples.append(Sample(f"{task}/{row['question_id']}", task, *image, asked, (), ""))
    return samples


def _textvqa(files: DataFiles, task: str, part: str) -> list[Sample]:
    path = files.require("textvqa", f"TextVQA_0.5.1_{part}.json")
    folders = ("textvqa/train_images", "train_images", "textvqa/images")
    samples = []
    for where, row in numbered(path, rows_of(path, "data")):
        image = files.image_in(folders, f"{text(row, 'image_id', where)}.jpg", where)
        answers = [str(answer) for answer in entries(row, "answers", where)]
        number = integer(row, "question_id", where)
        samples.append(_sample(task, number, image, row, answers, {}, where))
    return samples


def _vizwiz(files: DataFiles, task: str, part: str) -> list[Sample]:
    path = files.require("vizwiz", f"{part}.json")
    folders = (f"vizwiz/{part}", part, "vizwiz/images")
    samples = []
    for number, (where, row) in enumerate(numbered(path, rows_of(path))):
        image = files.image_in(folders, text(row, "image", where), where)
        answers = texts(row, "answers", "answer", where)
        facets = {"answer_type": str(row.get("answer_type", ""))}
        samples.append(_sample(task, number, image, row, answers, facets, where))
    return samples


def _gqa(files: DataFiles, task: str, part: str) -> list[Sample]:
    name = "testdev" if part == "val" else part
    path = files.require("gqa", f"{name}_balanced_questions.json")
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: not an object of questions by id")
    samples = []
    for number, row in content.items():
        where = f"{path}, question {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: not an object")
        folders = ("gqa/images", "images")
        image = files.image_in(folders, f"{text(row, 'imageId', where)}.jpg", where)
        types = row.get("types")
        kind = str(types.get("structural", "")) if isinstance(types, dict) else ""
        answers = [text(row, "answer", where)]
        samples.append(_sample(task, number, image, row, answers, {"question_type": kind}, where))
    return samples


def _sample(
    task: str,
    number: int | str,
    image: tuple[int | str, Path],
    row: Row,
    answers: Sequence[str],
    facets: dict[str, str],
    where: str,
) -> Sample:
    asked, target = text(row, "question", where), _commonest(answers)
    return Sample(f"{task}/{number}", task, *image, asked, tuple(answers), target, facets)


def _commonest(answers: Sequence[str]) -> str:
    return Counter(answers).most_common(1)[0][0]
