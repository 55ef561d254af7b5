"""VQA sets besides VQAv2, in their official files: OK-VQA, TextVQA, VizWiz, GQA.

What belongs here: each set's file names and fields. Where a set's images lie is tried in a few
places, its own folder first.

Reference: Marino et al. 2019 (arXiv 1906.00067); Singh et al. 2019 (arXiv 1904.08920); Gurari et
al. 2018 (arXiv 1802.08218); Hudson and Manning 2019 (arXiv 1902.09506).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError
from encoder_bench.data.files import (
    DataFiles,
    integer,
    numbered,
    read_json,
    rows_of,
    text,
    unique_ids,
)
from encoder_bench.data.sample import Sample, Split

_PARTS: dict[Split, str] = {"train": "train", "test": "val"}


def more_vqa_samples(files: DataFiles, task: str, source: str, split: Split) -> list[Sample]:
    """Return one sample a question; the public validation questions are the test split.

    Raises:
        DataError: files are missing or malformed, or no such split.
    """
    if split not in _PARTS:
        raise DataError(f"{files.root}: {source} has no third public split; use train or test")
    return _READERS[source](files, task, _PARTS[split])


def _okvqa(files: DataFiles, task: str, part: str) -> list[Sample]:
    questions_file = files.require("okvqa", f"OpenEnded_mscoco_{part}2014_questions.json")
    answers_file = files.require("okvqa", f"mscoco_{part}2014_annotations.json")
    questions = unique_ids(questions_file, rows_of(questions_file, "questions"), "question_id")
    samples = []
    for where, row in numbered(answers_file, rows_of(answers_file, "annotations")):
        number = integer(row, "question_id", where)
        if number not in questions:
            raise DataError(f"{where}: 'question_id' {number} has no question")
        image_id = integer(row, "image_id", where)
        asked = text(questions[number], "question", str(questions_file))
        samples.append(
            _sample(
                task, number, image_id, files.image(image_id, where), asked,
                _answers(row, where), question_type=str(row.get("question_type", "")),
            )
        )  # fmt: skip
    return samples


def _textvqa(files: DataFiles, task: str, part: str) -> list[Sample]:
    path = files.require("textvqa", f"TextVQA_0.5.1_{part}.json")
    samples = []
    for where, row in numbered(path, rows_of(path, "data")):
        name = f"{text(row, 'image_id', where)}.jpg"
        answers = row.get("answers")
        if not isinstance(answers, list) or not answers:
            raise DataError(f"{where}: 'answers' is not a list of human answers")
        folders = ("textvqa/train_images", "train_images", "textvqa/images")
        image_id, image = files.image_in(folders, name, where)
        number = integer(row, "question_id", where)
        asked = text(row, "question", where)
        samples.append(_sample(task, number, image_id, image, asked, [str(a) for a in answers]))
    return samples


def _vizwiz(files: DataFiles, task: str, part: str) -> list[Sample]:
    path = files.require("vizwiz", f"{part}.json")
    samples = []
    for index, (where, row) in enumerate(numbered(path, rows_of(path))):
        folders = (f"vizwiz/{part}", part, "vizwiz/images")
        image_id, image = files.image_in(folders, text(row, "image", where), where)
        samples.append(
            _sample(
                task, index, image_id, image, text(row, "question", where), _answers(row, where),
                answer_type=str(row.get("answer_type", "")),
            )
        )  # fmt: skip
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
        file = f"{text(row, 'imageId', where)}.jpg"
        image_id, image = files.image_in(("gqa/images", "images"), file, where)
        types = row.get("types")
        kind = str(types.get("structural", "")) if isinstance(types, dict) else ""
        answer = text(row, "answer", where)
        asked = text(row, "question", where)
        samples.append(_sample(task, number, image_id, image, asked, [answer], question_type=kind))
    return samples


_READERS: dict[str, Callable[[DataFiles, str, str], list[Sample]]] = {
    "okvqa": _okvqa,
    "textvqa": _textvqa,
    "vizwiz": _vizwiz,
    "gqa": _gqa,
}
SOURCES = {
    "okvqa": ("okvqa/mscoco_val2014_annotations.json",),
    "textvqa": ("textvqa/TextVQA_0.5.1_val.json",),
    "vizwiz": ("vizwiz/val.json",),
    "gqa": ("gqa/testdev_balanced_questions.json",),
}


def _sample(
    task: str,
    number: int | str,
    image_id: int | str,
    image: Path,
    question: str,
    answers: list[str],
    **facets: str,
) -> Sample:
    return Sample(
        sample_id=f"{task}/{number}",
        task=task,
        image_id=image_id,
        image_path=image,
        question=question,
        references=tuple(answers),
        target=Counter(answers).most_common(1)[0][0],
        facets=facets,
    )


def _answers(row: dict[str, Any], where: str) -> list[str]:
    answers = row.get("answers")
    if not isinstance(answers, list) or not answers:
        raise DataError(f"{where}: 'answers' is not a list of human answers")
    return [text(answer, "answer", where) for answer in answers]
