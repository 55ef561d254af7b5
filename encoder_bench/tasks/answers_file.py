"""Anyone's predictions file: read in the forms that are about, matched with samples, complained of.

What belongs here: rows to answers by sample, and what is odd about them, by kind. Nothing is left
out without being named; what an answer is worth is not decided here.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError
from encoder_bench.data.sample import Sample
from encoder_bench.tasks.answer_rows import rows_of_any_form

IDS = ("sample_id", "question_id", "id", "index")
TEXTS = ("prediction", "answer", "caption", "response", "output", "text", "pred")
LONG = 10_000
"""Characters beyond which an answer is worth a word."""
_FILE_NAME = re.compile(r"(?:.*[_/])?0*(\d+)\.(?:jpe?g|png)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """One row: where it stands, the names under which a sample may claim it, and its text."""

    place: str
    names: tuple[str, ...]
    image: str | None
    text: str


@dataclass(slots=True)
class AnswersFile:
    """All rows of a file, in order, and the samples or rows that something is odd about, by kind.

    Kinds: `not text`, `empty`, `long`, `control characters`, `another script`, `id is text`, and,
    after `matched`, `id written otherwise`, `missing`, `to no sample`.
    """

    path: Path
    answers: list[Answer]
    odd: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, name: str) -> None:
        """Count one thing that is odd."""
        self.odd.setdefault(kind, []).append(name)

    def matched(self, task: str, samples: Sequence[Sample]) -> dict[str, str]:
        """Return the answers by sample id; what is missing and what is left over is noted.

        Raises:
            DataError: a sample is answered twice, or no row belongs to any sample.
        """
        if self._in_order(samples):
            return {s.sample_id: a.text for s, a in zip(samples, self.answers, strict=True)}
        unnamed = next((answer for answer in self.answers if not answer.names), None)
        if unnamed is not None:
            raise DataError(
                f"{unnamed.place}: image {unnamed.image} has several questions, and the rows "
                f"are not those of task '{task}' in order; add 'question' or 'sample_id'"
            )
        owner = {name: s.sample_id for s in reversed(samples) for name in _names(s, samples)}
        found: dict[str, Answer] = {}
        twice: list[str] = []
        for answer in self.answers:
            name = next((name for name in answer.names if name in owner), None)
            if name is None:
                self.note("to no sample", f"{answer.place} ({answer.names[0]})")
            elif owner[name] in found:
                first = found[owner[name]].place.rpartition("/")[2]
                twice.append(f"{answer.names[0]} ({first} and {answer.place.rpartition('/')[2]})")
            else:
                found[owner[name]] = answer
                if name != answer.names[0]:
                    self.note("id written otherwise", f"{answer.names[0]} for {name}")
        if twice:
            raise DataError(
                f"{self.path}: a second answer to {len(twice)} samples, the first {twice[0]}; "
                "keep one of each"
            )
        if not found:
            raise DataError(
                f"{self.path}: no id of it is one of task '{task}', whose ids look like "
                f"{', '.join(_names(samples[0], samples)[:3])}"
            )
        for sample in samples:
            if sample.sample_id not in found:
                self.note("missing", sample.sample_id)
        return {sample_id: answer.text for sample_id, answer in found.items()}

    def _in_order(self, samples: Sequence[Sample]) -> bool:
        """Return whether rows have images alone, and these are the samples' in the same order."""
        return len(self.answers) == len(samples) and all(
            answer.image is not None and not answer.names and answer.image == _plain(s.image_id)
            for answer, s in zip(self.answers, samples, strict=True)
        )


def read_answers_file(path: Path) -> AnswersFile:
    """Read JSON (a list), JSON lines, or CSV with a header.

    A row has an id (`sample_id`, `question_id`, `id`, `index`, `image_id` with `question`, or
    `image_id` alone) and an answer. Rows of blind controls in our own files are passed over.

    Raises:
        DataError: malformed, or without an id or an answer; names the row.
    """
    file = AnswersFile(path, [])
    for place, row in rows_of_any_form(path):
        if row.get("control"):
            continue
        names, image = _row_names(row)
        key = next((name for name in TEXTS if name in row), None)
        if key is None or (not names and image is None):
            raise DataError(
                f"{place}: needs one of {', '.join((*IDS, 'image_id'))} and one of "
                f"{', '.join(TEXTS)}; it has {', '.join(map(str, row))}"
            )
        label = names[0] if names else str(image)
        if path.suffix != ".csv":
            for field_name in ("question_id", "image_id"):
                if isinstance(row.get(field_name), str) and row[field_name].strip().isdigit():
                    file.note("id is text", f"{field_name} {row[field_name]!r}")
        file.answers.append(Answer(place, names, image, _text(row[key], label, file)))
    if not file.answers:
        raise DataError(f"{path}: no answers in it")
    if any(not answer.names for answer in file.answers) and not _images_differ(file.answers):
        return file  # images repeat: only the order of rows can tell which question is meant
    file.answers = [
        answer
        if answer.names
        else Answer(answer.place, _spellings(answer.image or ""), None, answer.text)
        for answer in file.answers
    ]
    return file


def _images_differ(answers: Sequence[Answer]) -> bool:
    images = [answer.image for answer in answers if not answer.names]
    return len(set(images)) == len(images)


def _row_names(row: dict[str, Any]) -> tuple[tuple[str, ...], str | None]:
    """Return the names of the sample that a row answers, or its image where it has no other."""
    identifier = next((row[name] for name in IDS if row.get(name) not in (None, "")), None)
    if identifier is not None:
        return _spellings(identifier), None
    image = row.get("image_id", row.get("image"))
    if image in (None, ""):
        return (), None
    question = row.get("question", row.get("text_in"))
    if isinstance(question, str) and question.strip():
        return (_asked(image, question),), None
    return (), _plain(image)


def _spellings(identifier: Any) -> tuple[str, ...]:
    """Return an id as it is written, and as the number that it stands for.

    >>> _spellings(42.0), _spellings("000042"), _spellings("COCO_val2014_000000000042.jpg")
    (('42',), ('000042', '42'), ('COCO_val2014_000000000042.jpg', '42'))
    """
    if isinstance(identifier, float) and identifier.is_integer():
        identifier = int(identifier)
    written = str(identifier).strip()
    return tuple(dict.fromkeys((written, _plain(written))))


def _plain(identifier: Any) -> str:
    """Return an image's number where its name has one, else the name."""
    if isinstance(identifier, float) and identifier.is_integer():
        identifier = int(identifier)
    written = str(identifier).strip()
    if written.isascii() and written.isdigit():
        return str(int(written)) if len(written) < 1000 else written
    match = _FILE_NAME.fullmatch(written)
    return match.group(1) if match else written


def _asked(image: Any, question: str) -> str:
    return f"{_plain(image)} {' '.join(question.split())}"


def _names(sample: Sample, samples: Sequence[Sample]) -> tuple[str, ...]:
    """Return the names under which a file may answer a sample: ours, and the official ones."""
    names = [sample.sample_id, sample.sample_id.partition("/")[2]]
    if sample.question:
        names.append(_asked(sample.image_id, sample.question))
    else:
        names.append(_plain(sample.image_id))
    return tuple(dict.fromkeys(names))


def _text(value: Any, name: str, file: AnswersFile) -> str:
    """Return an answer as text, and note what is odd about it."""
    if not isinstance(value, str):
        shown = json.dumps(value, ensure_ascii=False, default=str)
        file.note("not text", f"{name} ({shown[:40]})")
        value = "" if value is None else shown
    clean = str(value).encode("utf-8", "replace").decode("utf-8")
    if not clean.strip():
        file.note("empty", name)
    if len(clean) > LONG:
        file.note("long", f"{name} ({len(clean):,} characters)")
    start = clean[:LONG]
    if clean != value or any(_is_control(letter) for letter in start):
        file.note("control characters", name)
    if not start.isascii() and any(_is_foreign(letter) for letter in start):
        file.note("another script", name)
    return clean


def _is_control(letter: str) -> bool:
    return letter not in "\n\r\t" and unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co")


def _is_foreign(letter: str) -> bool:
    return letter.isalpha() and "LATIN" not in unicodedata.name(letter, "")
