"""Any tool's predictions file: read in the usual forms, matched with samples, oddities noted."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError
from encoder_bench.data.sample import Sample

IDS = ("sample_id", "question_id", "id", "index")
TEXTS = ("prediction", "answer", "caption", "response", "output", "text", "pred")
MAX_LENGTH = 10_000
"""Characters beyond which an answer is noted as long."""
_FILE_NAME = re.compile(r"(?:.*[_/])?0*(\d+)\.(?:jpe?g|png)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """One row: its place in the file, the names under which a sample may claim it, its text.

    `image` is set where the row names nothing but an image.
    """

    place: str
    names: tuple[str, ...]
    image: str | None
    text: str


@dataclass(slots=True)
class AnswersFile:
    """All rows of a file, in order, and what is odd about samples or rows, by kind.

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
        if [a.image for a in self.answers] == [_plain(s.image_id) for s in samples]:
            return {s.sample_id: a.text for s, a in zip(samples, self.answers, strict=True)}
        unnamed = next((answer for answer in self.answers if not answer.names), None)
        if unnamed is not None:
            raise DataError(
                f"{unnamed.place}: image {unnamed.image} has several questions, and the rows "
                f"are not those of task '{task}' in order; add 'question' or 'sample_id'"
            )
        owner = {name: s.sample_id for s in reversed(samples) for name in _sample_names(s)}
        found: dict[str, Answer] = {}
        twice: list[str] = []
        for answer in self.answers:
            name = next((name for name in answer.names if name in owner), None)
            if name is None:
                self.note("to no sample", f"{answer.place} ({answer.names[0]})")
                continue
            first = found.setdefault(owner[name], answer)
            if first is not answer:
                places = (each.place.rpartition("/")[2] for each in (first, answer))
                twice.append(f"{answer.names[0]} ({' and '.join(places)})")
            elif name != answer.names[0]:
                self.note("id written otherwise", f"{answer.names[0]} for {name}")
        if twice:
            raise DataError(
                f"{self.path}: a second answer to {len(twice)} samples, the first {twice[0]}; "
                "keep one of each"
            )
        if not found:
            raise DataError(
                f"{self.path}: no id of it is one of task '{task}', whose ids look like "
                f"{', '.join(_sample_names(samples[0])[:3])}"
            )
        for sample in samples:
            if sample.sample_id not in found:
                self.note("missing", sample.sample_id)
        return {sample_id: answer.text for sample_id, answer in found.items()}


def read_answers_file(path: Path) -> AnswersFile:
    """Read JSON (a list), JSON lines, or CSV with a header.

    A row has an id (`sample_id`, `question_id`, `id`, `index`, `image_id` with `question`, or
    `image_id` alone) and an answer. Rows of blind baselines in our own files are skipped.

    Raises:
        DataError: malformed, or without an id or an answer; names the row.
    """
    file = AnswersFile(path, [])
    for place, row in _rows(path):
        if row.get("control"):
            continue
        names, image = _row_names(row)
        key = next((name for name in TEXTS if name in row), None)
        if key is None or (not names and image is None):
            raise DataError(
                f"{place}: needs one of {', '.join((*IDS, 'image_id'))} and one of "
                f"{', '.join(TEXTS)}; it has {', '.join(map(str, row))}"
            )
        if path.suffix != ".csv":
            for name in ("question_id", "image_id"):
                if isinstance(row.get(name), str) and row[name].strip().isdigit():
                    file.note("id is text", f"{name} {row[name]!r}")
        text = _text(row[key], names[0] if names else str(image), file)
        file.answers.append(Answer(place, names, image, text))
    if not file.answers:
        raise DataError(f"{path}: no answers in it")
    images = [answer.image for answer in file.answers if not answer.names]
    if len(set(images)) == len(images):  # else only the order of rows tells which question is meant
        file.answers = [
            a if a.names else replace(a, names=_spellings(a.image), image=None)
            for a in file.answers
        ]
    return file


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row, and the words that name it in an error."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    if file.suffix == ".csv":
        yield from _csv_rows(file, text)
        return
    if text.lstrip().startswith("["):
        entries = [(f"{file}, row {i}", row) for i, row in enumerate(_json(text, str(file)))]
    else:
        lines = enumerate(text.split("\n"), start=1)
        entries = [(f"{file}:{n}", _json(line, f"{file}:{n}")) for n, line in lines if line.strip()]
    for place, row in entries:
        if not isinstance(row, dict):
            raise DataError(f"{place}: not an object")
        yield place, row


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        at_end = isinstance(error, json.JSONDecodeError) and (
            error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated")
        )
        cut = " (cut short?)" if at_end else ""
        raise DataError(f"{place}: not valid JSON ({error}){cut}") from error


def _csv_rows(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    limit = csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            place = f"{file}:{reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{place}: another number of fields than the header")
            yield place, row
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not valid CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _row_names(row: dict[str, Any]) -> tuple[tuple[str, ...], str | None]:
    """Return the names of the sample that a row answers, or its image where it has no other."""
    identifier = next((row[name] for name in IDS if row.get(name) not in (None, "")), None)
    if identifier is not None:
        return _spellings(identifier), None
    image, question = row.get("image_id", row.get("image")), row.get("question", row.get("text_in"))
    if image in (None, ""):
        return (), None
    if isinstance(question, str) and question.strip():
        return (_asked(image, question),), None
    return (), _plain(image)


def _spellings(identifier: Any) -> tuple[str, ...]:
    """Return an id as it is written, and as the number that it means.

    >>> _spellings(42.0), _spellings("000042"), _spellings("COCO_val2014_000000000042.jpg")
    (('42',), ('000042', '42'), ('COCO_val2014_000000000042.jpg', '42'))
    """
    return tuple(dict.fromkeys((_written(identifier), _plain(identifier))))


def _written(identifier: Any) -> str:
    if isinstance(identifier, float) and identifier.is_integer():
        identifier = int(identifier)
    return str(identifier).strip()


def _plain(identifier: Any) -> str:
    """Return an image's number where its name has one, else the name."""
    written = _written(identifier)
    if written.isascii() and written.isdigit():
        return written.lstrip("0") or "0"
    match = _FILE_NAME.fullmatch(written)
    return match.group(1) if match else written


def _asked(image: Any, question: str) -> str:
    return f"{_plain(image)} {' '.join(question.split())}"


def _sample_names(sample: Sample) -> tuple[str, ...]:
    """Return the names under which a file may answer a sample: ours, and the official ones."""
    image, question = sample.image_id, sample.question
    official = _asked(image, question) if question else _plain(image)
    return tuple(dict.fromkeys((sample.sample_id, sample.sample_id.partition("/")[2], official)))


def _text(value: Any, name: str, file: AnswersFile) -> str:
    """Return an answer as text, and note what is odd about it."""
    if not isinstance(value, str):
        shown = json.dumps(value, ensure_ascii=False, default=str)
        file.note("not text", f"{name} ({shown[:40]})")
        value = "" if value is None else shown
    clean = str(value).encode("utf-8", "replace").decode("utf-8")
    start = clean[:MAX_LENGTH]
    if not clean.strip():
        file.note("empty", name)
    if len(clean) > MAX_LENGTH:
        file.note("long", f"{name} ({len(clean):,} characters)")
    categories = {unicodedata.category(letter) for letter in start if letter not in "\n\r\t"}
    if clean != value or categories & {"Cc", "Cf", "Cs", "Co"}:
        file.note("control characters", name)
    if any(c.isalpha() and "LATIN" not in unicodedata.name(c, "") for c in set(start)):
        file.note("another script", name)
    return clean
