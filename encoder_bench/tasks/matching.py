"""The rows of a predictions file and the samples that they answer."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from encoder_bench.base.errors import DataError
from encoder_bench.data.sample import Sample
from encoder_bench.tasks.answers_file import Answer, AnswersFile, name_of_image, name_of_question

MAX_LENGTH = 10_000
"""Characters beyond which an answer is noted as long."""
_KINDS = ("sample_id", "question_id", "question", "image_id", "id", "index", "doc_id")
_ROW_NUMBERS = ("id", "index", "doc_id")
"""Ids that in many files only count the rows of another tool's data."""


def match(file: AnswersFile, task: str, samples: Sequence[Sample]) -> tuple[dict[str, str], str]:
    """Return the answers by sample id, and in words how they were found.

    What is missing and what is odd is noted in the file.

    Of several kinds of id the surest that fits is used for all rows. Ids that may be row numbers
    (`id`, `index`, `doc_id`) count only where the rows' questions are those of the samples. Rows
    without an id that fits are taken in order where all images or all questions are the data's.

    Raises:
        DataError: a sample is answered twice, no row belongs to any sample, or more than one column
            may hold the predictions.
    """
    kind, pairs = _pairs(file, task, samples)
    column = _column(file, pairs)
    texts = {
        sample.sample_id: _text(answer.columns[column], sample.sample_id, file)
        for sample, answer in pairs
    }
    for sample in samples:
        if sample.sample_id not in texts:
            file.note("missing", sample.sample_id)
    return texts, f"matched by {kind}, answers in {column}"


def _pairs(
    file: AnswersFile, task: str, samples: Sequence[Sample]
) -> tuple[str, list[tuple[Sample, Answer]]]:
    contradiction = ""
    for kind in _KINDS:
        if not all(kind in answer.names for answer in file.answers):
            continue
        owner = _owners(kind, samples)
        names = [next((n for n in a.names[kind] if n in owner), None) for a in file.answers]
        claims = list(zip(file.answers, names, strict=True))
        pairs = [(owner[name], answer) for answer, name in claims if name is not None]
        if not pairs:
            continue
        if kind in _ROW_NUMBERS and (wrong := next((p for p in pairs if not _agree(*p)), None)):
            contradiction = contradiction or (
                f"; by '{kind}', {wrong[1].place.rpartition('/')[2]} is {wrong[0].sample_id}, but "
                "its question or truth is another"
            )
            continue
        _refuse_doubles(file, pairs, kind)
        for answer, name in claims:
            written = answer.names[kind][0]
            if name is None:
                file.note("to no sample", f"{answer.place} ({written})")
            elif name != written:
                file.note("id written otherwise", f"{written} for {name}")
        return kind, pairs
    if _in_order(file.answers, samples):
        return "order", list(zip(samples, file.answers, strict=True))
    kinds = {kind for answer in file.answers for kind in answer.names}
    if kinds == {"image_id"} and not _owners("image_id", samples):
        first = file.answers[0]
        raise DataError(
            f"{first.place}: image {first.names['image_id'][-1]} has several questions, and the "
            f"rows are not those of task '{task}' in order; add 'question' or 'sample_id'"
        )
    given = next((names[0] for names in file.answers[0].names.values()), "none")
    look = ", ".join(dict.fromkeys((samples[0].sample_id, _short(samples[0]))))
    raise DataError(
        f"{file.path}: no id of it (the first is {given}) is one of task '{task}', whose ids look "
        f"like {look}"
        f"{contradiction}"
    )


def _owners(kind: str, samples: Sequence[Sample]) -> Mapping[str, Sample]:
    """Return the samples by the names that a kind of id may have for them."""
    if kind == "question":
        return {name_of_question(s.image_id, s.question): s for s in samples if s.question}
    by_image = {name_of_image(sample.image_id): sample for sample in samples}
    images = by_image if len(by_image) == len(samples) else {}
    if kind == "image_id":
        return images
    ids = {name: s for s in samples for name in (_short(s), s.sample_id)}
    return images | ids if kind == "id" else ids


def _short(sample: Sample) -> str:
    return sample.sample_id.partition("/")[2] or sample.sample_id


def _agree(sample: Sample, answer: Answer) -> bool:
    """Return whether a row's question, or else its truth, is the sample's; True if it has none."""
    if answer.asked and sample.question:
        return _squeezed(sample.question) in _squeezed(answer.asked)
    if answer.truth and sample.references:
        truth = _squeezed(answer.truth)
        return any(_squeezed(each) in truth for each in sample.references)
    return True


def _squeezed(text: str) -> str:
    return " ".join(text.casefold().split())


def _refuse_doubles(file: AnswersFile, pairs: Sequence[tuple[Sample, Answer]], kind: str) -> None:
    first: dict[str, Answer] = {}
    twice = []
    for sample, answer in pairs:
        if (earlier := first.setdefault(sample.sample_id, answer)) is not answer:
            places = (each.place.rpartition("/")[2] for each in (earlier, answer))
            twice.append(f"{answer.names[kind][0]} ({' and '.join(places)})")
    if twice:
        raise DataError(
            f"{file.path}: a second answer to {len(twice)} samples, the first {twice[0]}; keep one "
            "of each"
        )


def _in_order(answers: Sequence[Answer], samples: Sequence[Sample]) -> bool:
    """Return whether rows are the samples in order: by every image, or by different questions."""
    if len(answers) != len(samples):
        return False
    pairs = list(zip(samples, answers, strict=True))
    if all(name_of_image(s.image_id) in a.names.get("image_id", ()) for s, a in pairs):
        return all(_agree(*pair) for pair in pairs)
    asked = len({s.question for s in samples}) > 1 and all(a.asked for a in answers)
    return asked and all(_agree(*pair) for pair in pairs)


def _column(file: AnswersFile, pairs: Sequence[tuple[Sample, Answer]]) -> str:
    """Return the column that holds the predictions, never one that holds the references."""
    if len(file.columns) == 1:
        name = file.columns[0]
        if all(isinstance(a.columns[name], list) for _, a in pairs):
            raise DataError(f"{file.path}: '{name}' holds lists, not one answer each")
        return name
    open_ones = [
        name
        for name in file.columns
        if not all(_is_reference(answer.columns[name], sample) for sample, answer in pairs)
    ]
    if len(open_ones) == 1:
        return open_ones[0]
    raise DataError(
        f"{file.path}: each of {', '.join(open_ones or file.columns)} may hold the predictions; "
        "say which by --column"
    )


def _is_reference(value: Any, sample: Sample) -> bool:
    if isinstance(value, list):
        return True
    return _squeezed(str(value)) in {_squeezed(text) for text in sample.references}


def _text(value: Any, name: str, file: AnswersFile) -> str:
    """Return an answer as text, and note what is odd about it."""
    if not isinstance(value, str):
        try:
            shown = json.dumps(value, default=str)
        except RecursionError:
            shown = "nested too deeply"
        file.note("not text", f"{name} ({shown[:40]})")
        value = "" if value is None else shown
    text = str(value)
    start = text[:MAX_LENGTH]
    if not text.strip():
        file.note("empty", name)
    if len(text) > MAX_LENGTH:
        file.note("long", f"{name} ({len(text):,} characters)")
    categories = {unicodedata.category(letter) for letter in set(start) - set("\n\r\t")}
    if "\ufffd" in start or categories & {"Cc", "Cf", "Co"}:
        file.note("control characters", name)
    if any(c.isalpha() and "LATIN" not in unicodedata.name(c, "") for c in set(start)):
        file.note("another script", name)
    return text
