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
from encoder_bench.data.image_files import Layout
from encoder_bench.data.readers.json_files import (
    integer,
    numbered,
    read_json,
    rows_of,
    text,
    unique_ids,
)
from encoder_bench.data.sample import Sample, Split

_PARTS: dict[Split, str] = {"train": "train", "test": "val"}


def more_vqa_samples(layout: Layout, task: str, source: str, split: Split) -> list[Sample]:
    """Return one sample a question; the public validation questions are the test split.

    Raises:
        DataError: files are missing or malformed, no such set, or no such split.
    """
    if source not in _READERS:
        raise DataError(f"no VQA set '{source}'; choose one of {', '.join(_READERS)}")
    if split not in _PARTS:
        raise DataError(f"{layout.root}: {source} has no third public split; use train or test")
    return _READERS[source](layout, task, _PARTS[split])


def _okvqa(layout: Layout, task: str, part: str) -> list[Sample]:
    questions_file = layout.require("okvqa", f"OpenEnded_mscoco_{part}2014_questions.json")
    answers_file = layout.require("okvqa", f"mscoco_{part}2014_annotations.json")
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
                task, number, image_id, layout.image(image_id, where), asked,
                _answers(row, where), question_type=str(row.get("question_type", "")),
            )
        )  # fmt: skip
    return samples


def _textvqa(layout: Layout, task: str, part: str) -> list[Sample]:
    path = layout.require("textvqa", f"TextVQA_0.5.1_{part}.json")
    samples = []
    for where, row in numbered(path, rows_of(path, "data")):
        name = f"{text(row, 'image_id', where)}.jpg"
        answers = row.get("answers")
        if not isinstance(answers, list) or not answers:
            raise DataError(f"{where}: 'answers' is not a list of human answers")
        folders = ("textvqa/train_images", "train_images", "textvqa/images")
        image_id, image = _image(layout, name, folders, where)
        number = integer(row, "question_id", where)
        asked = text(row, "question", where)
        samples.append(_sample(task, number, image_id, image, asked, [str(a) for a in answers]))
    return samples


def _vizwiz(layout: Layout, task: str, part: str) -> list[Sample]:
    places = (f"vizwiz/{part}.json", f"vizwiz/Annotations/{part}.json", f"Annotations/{part}.json")
    path = next((layout.root / place for place in places if (layout.root / place).is_file()), None)
    if path is None:
        raise DataError(f"{layout.root}: no vizwiz/{part}.json (VizWiz-VQA's annotations)")
    samples = []
    for index, (where, row) in enumerate(numbered(path, rows_of(path))):
        folders = (f"vizwiz/{part}", part, "vizwiz/images")
        image_id, image = _image(layout, text(row, "image", where), folders, where)
        samples.append(
            _sample(
                task, index, image_id, image, text(row, "question", where), _answers(row, where),
                answer_type=str(row.get("answer_type", "")),
            )
        )  # fmt: skip
    return samples


def _gqa(layout: Layout, task: str, part: str) -> list[Sample]:
    name = "testdev" if part == "val" else part
    path = layout.require("gqa", f"{name}_balanced_questions.json")
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: not an object of questions by id")
    samples = []
    for number, row in content.items():
        where = f"{path}, question {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: not an object")
        file = f"{text(row, 'imageId', where)}.jpg"
        image_id, image = _image(layout, file, ("gqa/images", "images"), where)
        types = row.get("types")
        kind = str(types.get("structural", "")) if isinstance(types, dict) else ""
        answer = text(row, "answer", where)
        asked = text(row, "question", where)
        samples.append(_sample(task, number, image_id, image, asked, [answer], question_type=kind))
    return samples


_READERS: dict[str, Callable[[Layout, str, str], list[Sample]]] = {
    "okvqa": _okvqa,
    "textvqa": _textvqa,
    "vizwiz": _vizwiz,
    "gqa": _gqa,
}
MORE_VQA = tuple(_READERS)


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


def _image(
    layout: Layout, name: str, folders: tuple[str, ...], where: str
) -> tuple[int | str, Path]:
    """Return an image's id and its file in the first of the folders that has it."""
    for folder in folders:
        if (layout.root / folder / name).is_file():
            return f"{folder}/{name}", layout.image(f"{folder}/{name}", where)
    raise DataError(f"{where}: no image {name} in {', '.join(folders)} of {layout.root}")
