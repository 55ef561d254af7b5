"""LLaVA's conversations: one JSON array, or JSON lines, streamed whatever their size.

A row is `{"id", "image": "a.jpg" or [...] or absent, "conversations": [{"from", "value"}]}`.
Reference: LLaVA at c121f04, docs/Finetune_Custom_Data.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import msgspec

from encoder_bench.base.errors import DataError
from encoder_bench.data.formats.row import BadRow, Parsed, Place, RawRow, RawRows, conversation

CHUNK_CHARACTERS, MAX_ROW_CHARACTERS = 2**20, 2**26
_SPACE = " \t\n\r"
_SEPARATORS = re.compile(r"[ \t\n\r,]*")
_decode = json.JSONDecoder().raw_decode


class _Message(msgspec.Struct):
    role: str = msgspec.field(name="from")
    value: str


class _Row(msgspec.Struct):
    conversations: list[_Message]
    image: str | list[str] | None = None
    images: list[str] | None = None


def rows(place: Place) -> RawRows:
    """Yield the rows of JSON arrays and of JSON lines.

    Raises:
        DataError: a file that is neither, or is cut short.
    """
    for path in place.files:
        try:
            with path.open(encoding="utf-8") as stream:
                yield from _array(path, stream) if _is_array(stream) else _lines(path, stream)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error.reason})") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse(content: object) -> Parsed:
    """Return a row's images and turns.

    Raises:
        BadRow: fields are missing or of another type, or the turns do not alternate.
    """
    try:
        row = msgspec.convert(content, _Row)
    except msgspec.ValidationError as error:
        raise BadRow("not in the format", str(error)) from None
    shown = [row.image] if isinstance(row.image, str) else row.image or row.images or []
    return conversation([(message.role, message.value) for message in row.conversations], shown)


def _is_array(stream: TextIO) -> bool:
    while (first := stream.read(1)) in (*_SPACE, "\ufeff") and first:
        pass
    if first != "[":
        stream.seek(0)
    return first == "["


def _lines(path: Path, stream: TextIO) -> RawRows:
    for number, line in enumerate(stream):
        if line.strip(_SPACE):
            yield RawRow(path.name, number, _line(line))


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow("not JSON", str(error))


def _array(path: Path, stream: TextIO) -> RawRows:
    """Yield the elements of an array whose bracket has been read, decoding piece by piece."""
    for number, value in enumerate(_elements(stream, str(path))):
        yield RawRow(path.name, number, value)


def _elements(stream: TextIO, where: str) -> Iterator[Any]:
    text, at, count = "", 0, 0
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
                raise DataError(f"{where}: not valid JSON in row {count} ({reason})") from None
            if end == len(text) and more and not isinstance(value, dict | list):
                break  # a number may go on in the next piece
            yield value
            at, count = end, count + 1
