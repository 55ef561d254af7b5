"""Annotation files, read into typed rows: what does not fit is one line that names file and row."""

from __future__ import annotations

import functools
import gzip
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, create_model

from encoder_bench.base.errors import DataError

T = TypeVar("T")
Text = Annotated[str, Field(pattern=r"\S")]
"""Text with a visible character in it."""
Rows = Annotated[list[T], Field(min_length=1)]
_EXPECTED = {
    "int_type": "a whole number",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "an object",
    "model_type": "an object",
}
"""What a field should be, by pydantic's type of error."""


def read_json(path: Path, form: type[T]) -> T:
    """Return a JSON file's content (of a `.gz` file unpacked) in the given form.

    A form is made of dataclasses, lists and dicts; it may leave out fields that the file has. A
    number written as text is an error, since it matches nothing.

    Raises:
        DataError: not readable, not JSON, of another form, or empty.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    content = parse_json(data, form, str(path))
    if not content:
        raise DataError(f"{path}: is empty")
    return content


def read_rows(path: Path, row: type[T], key: str) -> list[T]:
    """Return the rows under a key of a JSON file, as `read_json` does."""
    table = create_model(row.__name__, **{key: (list[row], Field(min_length=1))})  # type: ignore
    rows: list[T] = getattr(read_json(path, table), key)
    return rows


def parse_json(data: bytes | str, form: type[T], where: str) -> T:
    """Return JSON text in the given form; `where` names the text in an error."""
    adapter: TypeAdapter[T] = _adapter(form)  # type: ignore[arg-type]
    try:
        return adapter.validate_json(data, strict=True)
    except ValidationError as error:
        raise DataError(f"{where}: {_explained(error)}") from None


@functools.cache
def _adapter(form: Any) -> Any:
    return TypeAdapter(form)


def _explained(error: ValidationError) -> str:
    """Return the first thing that is wrong: `row 3: 'answers.2' is 5, not text`."""
    problem = error.errors(include_url=False)[0]
    kind, place, value = problem["type"], problem["loc"], problem["input"]
    if kind == "json_invalid":
        message = problem["ctx"]["error"]
        return f"not valid JSON: {message}{' (cut short?)' * message.startswith('EOF')}"
    row = next((index for index, part in enumerate(place) if isinstance(part, int)), -1)
    table = "".join(f"{part} " for part in place[: max(row, 0)])
    where = f"{table}row {place[row]}: " if row >= 0 else ""
    field = ".".join(map(str, place[row + 1 :]))
    if kind == "missing":
        return f"{where}no '{field}'"
    subject = f"'{field}'" if field else ""
    if kind in ("too_short", "string_pattern_mismatch"):
        return f"{where}{subject} is empty"
    if kind in _EXPECTED:
        subject = subject and f"{subject} is {reprlib.repr(value)}, "
        return f"{where}{subject}not {_EXPECTED[kind]}"
    return f"{where}{subject}: {problem['msg'].removeprefix('Value error, ')}"


def inner(field: str) -> BeforeValidator:
    """Return a validator that takes a text field out of each object of a list."""

    def values(rows: Any) -> Any:
        if not isinstance(rows, list):
            return rows
        for index, row in enumerate(rows):
            if not isinstance(row, dict) or field not in row:
                raise ValueError(
                    f"entry {index} is {reprlib.repr(row)}, not an object with '{field}'"
                )
        return [row[field] for row in rows]

    return BeforeValidator(values)


def numbered(path: Path, rows: Iterable[T]) -> Iterator[tuple[str, T]]:
    """Yield each row with the words that name it in an error."""
    for index, row in enumerate(rows):
        yield f"{path}: row {index}", row


def unique(path: Path, rows: Iterable[T], field: str = "id") -> dict[int, T]:
    """Return rows by a field that no two of them share."""
    found: dict[int, T] = {}
    for where, row in numbered(path, rows):
        if found.setdefault(getattr(row, field), row) is not row:
            raise DataError(f"{where}: duplicate '{field}' {getattr(row, field)}")
    return found
