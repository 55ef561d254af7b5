"""Rows of JSON files: one array, or JSON lines, streamed whatever their size."""

import json
import re
from pathlib import Path
from typing import TextIO

from encoder_bench.base.errors import DataError
from encoder_bench.base.files import reading
from encoder_bench.data.formats.row import BadRow, Place, RawRow, RawRows

CHUNK_CHARACTERS, MAX_ROW_CHARACTERS = 2**20, 2**26
_SPACE = " \t\n\r"
_SEPARATORS = re.compile(r"[ \t\n\r,]*")
_decode = json.JSONDecoder().raw_decode


def rows(place: Place) -> RawRows:
    """Yield the rows of JSON arrays and of JSON lines.

    Raises:
        DataError: a file that is neither, or is cut short.
    """
    for path in place.files:
        with reading(path), path.open(encoding="utf-8-sig") as stream:
            yield from _array(path, stream) if _is_array(stream) else _lines(path, stream)


def _is_array(stream: TextIO) -> bool:
    while (first := stream.read(1)) in _SPACE and first:
        pass
    if first != "[":
        stream.seek(0)
    return first == "["


def _lines(path: Path, stream: TextIO) -> RawRows:
    for number, line in enumerate(stream):
        if not line.strip(_SPACE):
            continue
        try:
            content: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            content = BadRow("not JSON", str(error))
        yield RawRow(path.name, number, content)


def _array(path: Path, stream: TextIO) -> RawRows:
    """Yield the elements of an array whose bracket has been read, decoding piece by piece."""
    text, at, number = "", 0, 0
    while True:
        more = stream.read(max(CHUNK_CHARACTERS, len(text) - at))
        text, at = text[at:] + more, 0
        while True:
            start = _SEPARATORS.match(text, at).end()  # type: ignore[union-attr]
            if text[start : start + 1] == "]":
                return
            try:
                value, end = _decode(text, start)
            except (ValueError, RecursionError) as error:
                if more and len(text) - start < MAX_ROW_CHARACTERS:
                    break
                reason = str(error).partition(":")[0] + "; cut short?" * (not more)
                raise DataError(f"{path}: not valid JSON in row {number} ({reason})") from None
            if end == len(text) and more and not isinstance(value, dict | list):
                break  # a number may go on in the next piece
            yield RawRow(path.name, number, value)
            at, number = end, number + 1
