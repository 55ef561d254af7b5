"""Reading the official JSON files, so that what is wrong with one is named with its row.

What belongs here: whole files and typed fields of rows. What rows mean is each reader's job.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError

Row = dict[str, Any]


def read_json(path: Path) -> Any:
    """Return a JSON file's content; a `.gz` file is unpacked.

    Raises:
        DataError: missing, cut short or not JSON; names file, line and column.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        ended = error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated")
        cut = " (cut short?)" if ended else ""
        raise DataError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}{cut}"
        ) from None


def rows_of(path: Path, key: str | None = None) -> list[Row]:
    """Return the list of rows in a JSON file, under `key` where it is an object.

    Raises:
        DataError: no such key, not a list, a row that is no object, or an empty list.
    """
    content = read_json(path)
    if key is not None:
        if not isinstance(content, dict) or key not in content:
            raise DataError(f"{path}: no '{key}' at the top level")
        content = content[key]
    where = f"{path}: '{key}'" if key else str(path)
    if not isinstance(content, list):
        raise DataError(f"{where} is not a list")
    if not content:
        raise DataError(f"{where} is empty")
    for index, row in enumerate(content):
        if not isinstance(row, dict):
            raise DataError(f"{where}, row {index}: not an object")
    return content


def numbered(path: Path, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    """Yield each row with the words that name it in an error."""
    for index, row in enumerate(rows):
        yield f"{path}, row {index}", row


def integer(row: Row, field: str, where: str) -> int:
    """Return a whole number field.

    Raises:
        DataError: missing, or of another type (an id as text in one file matches nothing).
    """
    value = _field(row, field, where)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where}: '{field}' is {value!r}, not a whole number")
    return value


def text(row: Row, field: str, where: str) -> str:
    """Return a text field that is not blank.

    Raises:
        DataError: missing, of another type, or without a visible character.
    """
    value = _field(row, field, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: '{field}' is {value!r}, not text")
    if not value.strip():
        raise DataError(f"{where}: '{field}' is empty")
    return value


def unique_ids(path: Path, rows: Iterable[Row], field: str = "id") -> dict[int, Row]:
    """Return rows by id.

    Raises:
        DataError: an id occurs twice; names it.
    """
    found: dict[int, Row] = {}
    for where, row in numbered(path, rows):
        identifier = integer(row, field, where)
        if identifier in found:
            raise DataError(f"{where}: duplicate '{field}' {identifier}")
        found[identifier] = row
    return found


def _field(row: Row, field: str, where: str) -> Any:
    if field not in row:
        raise DataError(f"{where}: no '{field}'")
    return row[field]
