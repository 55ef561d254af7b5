"""Any tool's predictions file: its container, its layout, and the rows in one form.

Layouts of other tools were taken from their sources: EvolvingLMMs-Lab/lmms-eval at 0716c69
(`loggers/evaluation_tracker.py`), open-compass/VLMEvalKit at 0044c57 (`inference.py`,
`smp/file.py`), EleutherAI/lm-evaluation-harness at da21196 (`loggers/evaluation_tracker.py`).
"""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError

IDS = ("sample_id", "question_id", "image_id", "id", "index", "doc_id")
"""The keys of a row that may name its sample, the surest first; the last three often count rows."""
COLUMNS = ("prediction", "pred", "response", "output", "text", "caption", "answer")
"""The keys of a row that may hold the answer of the model."""
_IMAGES = ("image_id", "image", "image_source")
_QUESTIONS = ("question", "text_in", "input")
_TRUTHS = ("target", "answer")
_FILE_NAME = re.compile(r"(?:.*[_/])?0*(\d+)\.(?:jpe?g|png)|COCO_\w+_0*(\d+)", re.IGNORECASE)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_WHOLE_FLOAT = re.compile(r"\d+\.0+")
"""As pandas writes whole numbers of a column that lacks some."""
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Answer:
    """One row of a file.

    Attributes:
        place: words that name it in an error.
        names: by kind of id, the spellings by which a sample may claim it. Kinds are `IDS`, and
            `question` for an image and the question about it.
        asked: its question or prompt, empty if there is none.
        truth: what it holds as the right answer, if anything.
        columns: what may be the model's answer, by key.
    """

    place: str
    names: Mapping[str, tuple[str, ...]]
    asked: str
    truth: str
    columns: Mapping[str, Any]


@dataclass(slots=True)
class AnswersFile:
    """All rows of a file, in order.

    Attributes:
        form: the layout and container, in words.
        columns: the keys that may hold the model's answer; one where the layout says which.
        odd: what is odd about it: kind -> names of samples or rows.
    """

    path: Path
    form: str
    answers: list[Answer]
    columns: tuple[str, ...]
    odd: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, name: str) -> None:
        """Count one thing that is odd."""
        self.odd.setdefault(kind, []).append(name)


def read_answers_file(path: Path, column: str | None = None) -> AnswersFile:
    """Read JSON, JSON lines, CSV, TSV or an Excel sheet, of this program or another.

    JSON is a list of rows, an object that holds one such list, or an object `{id: answer}`. Rows of
    blind baselines in our own files are skipped. `column` is the key that holds the model's answer;
    None to find it.

    Raises:
        DataError: malformed, or a row has no id or no answer; names the row.
    """
    container, raw = _CONTAINERS.get(path.suffix.lower(), _read_json)(path)
    rows = [(place, row) for place, row in raw if not row.get("control")]
    if not rows:
        raise DataError(f"{path}: no answers in it")
    layout, unpack = _layout(rows[0][1], container)
    if len(filters := {str(row["filter"]) for _, row in rows if "filter" in row}) > 1:
        raise DataError(f"{path}: answers of several filters ({', '.join(sorted(filters))})")
    if unpack:
        rows = [(place, _unpacked(row, place)) for place, row in rows]
    first = rows[0][1]
    fixed = "prediction" if unpack or {"prediction", "index"} <= first.keys() else None
    chosen = column or fixed
    columns = (chosen,) if chosen else tuple(name for name in COLUMNS if name in first)
    file = AnswersFile(path, f"{layout} ({container})", [], columns)
    for place, row in rows:
        names = _names(row)
        if not names or not columns or any(name not in row for name in columns):
            raise DataError(
                f"{place}: needs one of {', '.join(IDS)} and one of "
                f"{column or ', '.join(columns or COLUMNS)}; it has {', '.join(row)}"
                f"{'' if column else ' (--column names another for the answer)'}"
            )
        if path.suffix.lower() in _CONTAINERS:
            row = {key: "" if value is None else value for key, value in row.items()}
        else:
            for name in ("question_id", "image_id"):
                if isinstance(row.get(name), str) and row[name].strip().isdigit():
                    file.note("id is text", f"{name} {row[name]!r}")
        asked = next(filter(None, (_words(row.get(key)) for key in _QUESTIONS)), "")
        truth = next((_words(row[k]) for k in _TRUTHS if k in row and columns != (k,)), "")
        held = {name: _only(row[name]) for name in columns}
        file.answers.append(Answer(place, names, asked, truth, held))
    return file


Rows = list[tuple[str, dict[str, Any]]]


def _read_json(path: Path) -> tuple[str, Rows]:
    """Return a JSON file's rows, each with the words that name it, and what holds them."""
    text = _text_of(path)
    try:
        content = _loads(text)
    except (ValueError, RecursionError):
        if text.lstrip().startswith("["):
            _parsed(text, str(path))  # raises, and names the file
        lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
        numbered = ((f"{path}:{n}", _parsed(line, f"{path}:{n}")) for n, line in lines)
        return "JSON lines", _objects(numbered)
    if isinstance(content, list):
        return "JSON list", _objects((f"{path}, row {i}", row) for i, row in enumerate(content))
    if not isinstance(content, dict) or content.keys() & set(IDS):
        return "JSON lines", _objects([(f"{path}:1", content)])
    lists = [k for k, v in content.items() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if len(lists) == 1:
        places = (f"{path}, '{lists[0]}' row {i}" for i in range(len(content[lists[0]])))
        rows = _objects(zip(places, content[lists[0]], strict=True))
        return f"JSON list under '{lists[0]}'", rows
    if lists:
        raise DataError(f"{path}: several lists in it ({', '.join(lists)})")
    if any(isinstance(_only(value), list | dict) for value in content.values()):
        raise DataError(f"{path}: neither rows nor one answer for each id")
    rows = [(f"{path}, '{k}'", {"id": k, "prediction": v}) for k, v in content.items()]
    return "JSON object of ids and answers", _objects(rows)


def _read_table(path: Path, delimiter: str) -> tuple[str, Rows]:
    limit = csv.field_size_limit(sys.maxsize)
    text = _text_of(path)
    if delimiter not in (header := text.partition("\n")[0]) and ";" in header:
        delimiter = ";"  # as Excel writes CSV where the comma is the decimal mark
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: Rows = []
    try:
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{place}: another number of fields than the header")
            rows.append((place, row))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
    return "TSV" if delimiter == "\t" else "CSV", rows


def _read_excel(path: Path) -> tuple[str, Rows]:
    import pandas as pd

    try:
        frame = pd.read_excel(path, dtype=object, na_filter=False)
    except Exception as error:  # a damaged workbook fails in any of the parsers below
        raise DataError(f"{path}: cannot be read as an Excel sheet ({error})") from error
    frame.columns = frame.columns.map(str)
    rows = ((f"{path}, row {i}", row) for i, row in enumerate(frame.to_dict("records"), start=2))
    return "Excel sheet", _objects(rows)


_CONTAINERS: dict[str, Callable[[Path], tuple[str, Rows]]] = {
    ".csv": lambda path: _read_table(path, ","),
    ".tsv": lambda path: _read_table(path, "\t"),
    ".xlsx": _read_excel,
}


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _parsed(text: str, place: str) -> Any:
    try:
        return _loads(text)
    except (ValueError, RecursionError) as error:
        at_end = isinstance(error, json.JSONDecodeError) and (
            error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated")
        )
        cut = " (cut short?)" if at_end else ""
        raise DataError(f"{place}: not valid JSON ({error})"[:400] + cut) from error


def _loads(text: str) -> Any:
    """Return the content of JSON; a lone surrogate, which no file or tokenizer takes, is U+FFFD."""
    content = json.loads(text)
    return _without_surrogates(content) if _SURROGATE_ESCAPE.search(text) else content


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_surrogates(each) for each in value]
    if isinstance(value, dict):
        return {_LONE_SURROGATE.sub("\ufffd", k): _without_surrogates(v) for k, v in value.items()}
    return value


def _objects(rows: Iterable[tuple[str, Any]]) -> Rows:
    found: Rows = []
    for place, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{place}: not an object")
        found.append((place, row))
    return found


def _layout(row: Mapping[str, Any], container: str) -> tuple[str, bool]:
    """Return the tool or benchmark whose rows these are, and whether they are nested samples."""
    keys = row.keys()
    if "doc_id" in keys and keys & {"filtered_resps", "resps"}:
        if container == "JSON list under 'logs'":
            return "lmms-eval log", True
        return ("lm-eval samples" if "arguments" in keys else "lmms-eval samples"), True
    for name, needed in (
        ("VLMEvalKit predictions", {"index", "prediction"}),
        ("encoder-bench predictions", {"sample_id", "prediction"}),
        ("COCO results", {"image_id", "caption"}),
        ("VQA results", {"question_id", "answer"}),
    ):
        if needed <= keys:
            return name, False
    return "rows", False


def _unpacked(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a sample of lm-eval or lmms-eval as a flat row: ids from `doc`, else from scores."""
    answer = _only(row.get("filtered_resps") or row.get("resps") or "")
    if isinstance(answer, list):
        raise DataError(f"{place}: {len(answer)} responses, of which none is the answer")
    flat: dict[str, Any] = {"prediction": answer}
    for inner in (row.get("doc"), *(row[key] for key in row if key != "doc"), row):
        if isinstance(inner, dict):
            for key in (*IDS, *_IMAGES, *_QUESTIONS, "target"):
                if key in inner:
                    flat.setdefault(key, inner[key])
    return flat


def _only(value: Any) -> Any:
    """Return the one element of a list, however deep; any other value as it is."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _names(row: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the names of the sample that a row answers, by kind of id."""
    names = {kind: _spellings(row[kind]) for kind in IDS if _is_id(row.get(kind))}
    image = next((row[key] for key in _IMAGES if _is_id(row.get(key))), None)
    question = next((row[k] for k in _QUESTIONS[:2] if isinstance(row.get(k), str)), "")
    if image is not None:
        names["image_id"] = _spellings(image)
        if question.strip():
            names["question"] = (name_of_question(image, question),)
    return names


def _words(value: Any) -> str:
    """Return a text, or all texts of a list; nothing of any other value."""
    texts = value if isinstance(value, list) else [value]
    return " ".join(text for text in texts if isinstance(text, str))


def _is_id(value: Any) -> bool:
    return value is not None and value != "" and not isinstance(value, dict | list)


def _spellings(identifier: Any) -> tuple[str, ...]:
    """Return an id as it is written, and as the number that it means.

    >>> _spellings("42.0"), _spellings("000042"), _spellings("COCO_val2014_000000000042.jpg")
    (('42',), ('000042', '42'), ('COCO_val2014_000000000042.jpg', '42'))
    """
    return tuple(dict.fromkeys((_written(identifier), name_of_image(identifier))))


def _written(identifier: Any) -> str:
    if isinstance(identifier, str) and _WHOLE_FLOAT.fullmatch(identifier):
        return identifier.partition(".")[0]
    if isinstance(identifier, float) and identifier.is_integer():
        identifier = int(identifier)
    return str(identifier).strip()


def name_of_image(identifier: Any) -> str:
    """Return an image's number where its name has one, else the name."""
    written = _written(identifier)
    if written.isascii() and written.isdigit():
        return written.lstrip("0") or "0"
    match = _FILE_NAME.fullmatch(written)
    return (match.group(1) or match.group(2)) if match else written


def name_of_question(image: Any, question: str) -> str:
    """Return the name of an image and a question about it."""
    return f"{name_of_image(image)} {' '.join(question.split())}"
