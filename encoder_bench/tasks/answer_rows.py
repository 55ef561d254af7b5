"""Rows of a predictions file, whatever its form, each with the words that name it in an error.

What belongs here: JSON, JSON lines and CSV. What a row means is `answers_file.py`'s business.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError


def rows_of_any_form(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row of a JSON list, of JSON lines or of a CSV file, and the words that name it.

    Raises:
        DataError: unreadable, cut short or malformed; names the row.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    if file.suffix == ".csv":
        yield from _csv_rows(file, text)
        return
    entries: Iterable[tuple[str, Any]]
    if text.lstrip().startswith("["):
        entries = ((f"{file}, row {i}", row) for i, row in enumerate(_json(text, str(file))))
    else:
        lines = enumerate(text.split("\n"), start=1)
        entries = (
            (f"{file}:{number}", _json(line, f"{file}:{number}"))
            for number, line in lines
            if line.strip()
        )
    for place, row in entries:
        if not isinstance(row, dict):
            raise DataError(f"{place}: not an object")
        yield place, row


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        ended = error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated")
        cut = " (cut short?)" if ended else ""
        raise DataError(f"{place}: not valid JSON ({error}){cut}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error})") from error


def _csv_rows(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    limit = csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{file}:{reader.line_num}: another number of fields than the header"
                )
            yield f"{file}:{reader.line_num}", row
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not valid CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
