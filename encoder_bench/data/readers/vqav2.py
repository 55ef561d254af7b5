"""VQAv2 questions and annotations, in the official files.

Reference: Goyal et al. 2017 (arXiv 1612.00837); the files of visualqa.org.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_text
from encoder_bench.data.files import DataFiles, integer, numbered, rows_of, text, unique_ids
from encoder_bench.data.sample import Sample, Split

_YEAR_SPLIT = {"train": "train2014", "val": "val2014"}
HELD_OUT_SHARE = 0.6
"""Of the images with questions, where only training images have any."""


UNANSWERED = ("test-dev2015", "test2015")
"""Sources whose answers are not public; the benchmark's server scores an uploaded file."""
SOURCES = {
    source: tuple(f"vqav2/v2_OpenEnded_mscoco_{part}_questions.json" for part in parts)
    for source, parts in {
        "vqav2": ("val2014", "train2014"),
        **{source: (source,) for source in UNANSWERED},
    }.items()
}
"""Where the training questions are the only ones, some of them are the test split."""


def vqa_samples(files: DataFiles, task: str, source: str, split: Split) -> list[Sample]:
    """Return one sample a question; the public validation questions are the test split.

    The test split of `test-dev2015` and `test2015` has no references.

    Where a folder has training questions only, a fixed part of their images is the test split and
    the rest is the training split, so that no image is in both.

    Raises:
        DataError: files are missing or malformed, or an id is duplicate or dangling.
    """
    if split == "val":
        raise DataError(f"{files.root}: VQAv2 has no third public split; use train or test")
    if source in UNANSWERED and split == "test":
        return _read_unanswered(files, task, source)
    names = (_questions_name("val"), _answers_name("val"))
    if any(files.find("vqav2", name) for name in names):
        return _read(files, task, "val" if split == "test" else "train")
    samples = _read(files, task, "train")
    return [s for s in samples if is_held_out(s.image_id) == (split == "test")]


def is_held_out(image_id: int | str) -> bool:
    """Return whether a training image belongs to the held-out test part; fixed for all seeds."""
    return int(hash_text("vqa-held-out", str(image_id))[:8], 16) / 2**32 < HELD_OUT_SHARE


def _questions_name(part: str) -> str:
    return f"v2_OpenEnded_mscoco_{_YEAR_SPLIT[part]}_questions.json"


def _answers_name(part: str) -> str:
    return f"v2_mscoco_{_YEAR_SPLIT[part]}_annotations.json"


def _read(files: DataFiles, task: str, part: str) -> list[Sample]:
    questions_file = files.require("vqav2", _questions_name(part))
    answers_file = files.require("vqav2", _answers_name(part))
    questions = unique_ids(questions_file, rows_of(questions_file, "questions"), "question_id")
    annotations = rows_of(answers_file, "annotations")
    answered = unique_ids(answers_file, annotations, "question_id")
    missing = sorted(questions.keys() - answered.keys())
    if missing:
        raise DataError(
            f"{answers_file}: no annotation for {len(missing)} questions, the first "
            f"'question_id' {missing[0]}"
        )
    samples = []
    for where, row in numbered(answers_file, annotations):
        question = questions.get(row["question_id"])
        if question is None:
            raise DataError(f"{where}: 'question_id' {row['question_id']} has no question")
        samples.append(_sample(files, task, question, row, where, questions_file))
    return samples


def _read_unanswered(files: DataFiles, task: str, source: str) -> list[Sample]:
    path = files.require("vqav2", f"v2_OpenEnded_mscoco_{source}_questions.json")
    rows = rows_of(path, "questions")
    unique_ids(path, rows, "question_id")
    samples = []
    for where, row in numbered(path, rows):
        image_id = integer(row, "image_id", where)
        image, asked = files.image(image_id, where), text(row, "question", where)
        samples.append(Sample(f"{task}/{row['question_id']}", task, image_id, image, asked, (), ""))
    return samples


def _sample(
    files: DataFiles,
    task: str,
    question: dict[str, Any],
    annotation: dict[str, Any],
    where: str,
    questions_file: Path,
) -> Sample:
    image_id = integer(annotation, "image_id", where)
    if integer(question, "image_id", str(questions_file)) != image_id:
        raise DataError(f"{where}: another 'image_id' than its question has in {questions_file}")
    answers = annotation.get("answers")
    if not isinstance(answers, list) or not answers:
        raise DataError(f"{where}: 'answers' is not a list of human answers")
    return Sample(
        sample_id=f"{task}/{annotation['question_id']}",
        task=task,
        image_id=image_id,
        image_path=files.image(image_id, where),
        question=text(question, "question", str(questions_file)),
        references=tuple(text(answer, "answer", where) for answer in answers),
        target=text(annotation, "multiple_choice_answer", where),
        facets={
            "answer_type": str(annotation.get("answer_type", "")),
            "question_type": str(annotation.get("question_type", "")),
        },
    )
