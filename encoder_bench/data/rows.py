"""Annotation files, read into typed rows: what does not fit is one line that names file and row.

The lists of a file are decoded row by row, so that a file of half a gigabyte is in memory once, and
its rows hardly. Of the parsers tried on COCO's and VQAv2's largest files (860,001 objects with
segments, 443,757 questions with ten answers), msgspec took 2.4 and 1.4 s and 506 and 357 MB, orjson
13.2 and 5.7 s and 4418 and 2852 MB, ijson 14.7 and 4.3 s and 15 MB.
"""

import codecs
import functools
import gzip
import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from encoder_bench.base.errors import DataError
from encoder_bench.base.files import reading

T = TypeVar("T")
Text = Annotated[str, msgspec.Meta(pattern=r"\S")]
"""Text with a visible character in it."""
Rows = Annotated[list[T], msgspec.Meta(min_length=1)]
Numbered = Iterator[tuple[str, T]]
"""Rows, each with the words that name it in an error."""
_NONE = re.compile(r"Object missing required field `(.*)`")
_EMPTY = re.compile(r"Expected `(array` of length >= 1|str` matching regex .*)")


class Row(msgspec.Struct, gc=False):
    """A row of an annotation file; it may leave out fields that the file has.

    Whole numbers may be written as `5.0` or `"5"`, as tools that export COCO's format do.
    """


def read_rows(path: Path, row: type[T], key: str | None = "") -> Numbered[T]:
    """Yield the rows of a JSON file, as `AnnotationFile.rows`."""
    return AnnotationFile(path).rows(row, key)


def read_json_bytes(path: Path) -> bytes:
    """Return the content of a JSON file, or of the `.gz` of one, without a byte order mark.

    Raises:
        DataError: not readable.
    """
    with reading(path):
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    return data.removeprefix(codecs.BOM_UTF8)  # which editors on Windows write


class AnnotationFile:
    """A JSON file (or the `.gz` of one), whose rows are decoded when asked for.

    Raises:
        DataError: not readable.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._content = path, read_json_bytes(path)

    def rows(self, row: type[T], key: str | None = "") -> Numbered[T]:
        """Yield the rows of the list under a key, or of the list that the file is.

        With None the file is one object, whose keys name the rows.

        Raises:
            DataError: not JSON, no such list, an empty one, or a row of another form.
        """
        where, content = f"{self._path}: ", self._content
        if key:
            if key not in self._tables:
                raise DataError(f"{where}no '{key}'")
            content, where = self._tables[key], f"{where}{key} "
        names: Iterable[object] = itertools.count()
        values: Collection[msgspec.Raw]
        if key is None:
            names, values = self._tables.keys(), self._tables.values()
        else:
            values = parse_json(content, list[msgspec.Raw], where.rstrip(": "))
        if not values:
            raise DataError(f"{self._path}: '{key}' is empty" if key else f"{where}is empty")
        named = zip(names, values, strict=False)
        return _decoded(((f"{where}row {name}", each) for name, each in named), row)

    @functools.cached_property
    def _tables(self) -> dict[str, msgspec.Raw]:
        return parse_json(self._content, dict[str, msgspec.Raw], str(self._path))


def parse_json(data: bytes | msgspec.Raw, form: type[T], where: str) -> T:
    """Return JSON text in the given form; `where` names the text in an error."""
    ((_, content),) = _decoded([(where, data)], form)
    return content


def _decoded(named: Iterable[tuple[str, bytes | msgspec.Raw]], form: type[T]) -> Numbered[T]:
    decode = msgspec.json.Decoder(form).decode
    where = ""
    try:
        for where, data in named:
            try:
                row = decode(data)
            except msgspec.ValidationError:
                if (found := _otherwise_written(data, form)) is None:
                    raise
                row = found
            yield where, row
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{where}: {_explained(error)}") from None


def _otherwise_written(data: bytes | msgspec.Raw, form: type[T]) -> T | None:
    """Return a row whose whole numbers are written otherwise; None where more is wrong with it."""
    if not issubclass(form, Row):
        return None
    try:
        return msgspec.convert(_whole_numbers(msgspec.json.decode(data)), form, strict=False)
    except (msgspec.ValidationError, RecursionError):
        return None


def _whole_numbers(value: Any) -> Any:
    """Return JSON content with numbers such as 5.0 as whole ones."""
    if isinstance(value, dict):
        return {key: _whole_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _explained(error: Exception) -> str:
    """Return what is wrong: `no 'answers'`, `'answers[2].answer': Expected `str`, got `int``."""
    if not isinstance(error, msgspec.ValidationError):
        cut = " (cut short?)" * ("truncated" in str(error))
        return f"not valid JSON: {error}{cut}"
    message, _, place = str(error).partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    if found := _NONE.fullmatch(message):
        return f"no '{f'{place}.' * bool(place)}{found[1]}'"
    if place and _EMPTY.fullmatch(message):
        return f"'{place}' is empty"
    return f"'{place}': {message}" if place else message


def unique(rows: Numbered[T], field: str = "id") -> Numbered[T]:
    """Yield rows, of which no two may share a field's value."""
    seen: set[Any] = set()
    for where, row in rows:
        value = getattr(row, field)
        if value in seen:
            raise DataError(f"{where}: duplicate '{field}' {value}")
        seen.add(value)
        yield where, row
