"""Image captions: rows of one image and one text, asked for by a source's prompt."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from encoder_bench.base.errors import DataError
from encoder_bench.data.formats import arrow_files
from encoder_bench.data.formats.row import BadRow, Parsed, Place, RawRow, RawRows, conversation

DEFAULT_PROMPT = "Describe the image in one sentence."
_IMAGE_COLUMNS = ("image", "file_name", "image_path", "filename", "filepath", "path", "images")
_TEXT_COLUMNS = ("caption", "text", "TEXT", "title", "description")
MAX_CELL_CHARACTERS = 2**24


def rows(place: Place) -> RawRows:
    """Yield `{"images", "text"}` of TSV, CSV, Parquet and Arrow files.

    Raises:
        DataError: a file cannot be read, or has no column for images or for texts.
    """
    wanted = {"image": place.source.image_column, "text": place.source.text_column}
    for path in place.files:
        if path.suffix == ".arrow":
            columns = arrow_files.columns(path)
            image, text = _columns(columns, wanted, str(place.source.path or place.source.hub))
            for raw in arrow_files.file_rows(place, path, [text], image):
                row = raw.content
                assert isinstance(row, dict)
                yield raw._replace(content={"images": row["images"], "text": row[text]})
        else:
            yield from _text_rows(path, wanted)


def parse(content: object, place: Place) -> Parsed:
    """Return a caption as the answer to the source's prompt.

    Raises:
        BadRow: no image, or no caption.
    """
    assert isinstance(content, dict)
    images, text = content["images"], content["text"]
    if not images:
        raise BadRow("missing image", "no image")
    if not isinstance(text, str):
        raise BadRow("no caption", f"the caption is {text!r:.60}")
    prompt = DEFAULT_PROMPT if place.source.prompt is None else place.source.prompt
    if not text.strip():
        raise BadRow("no caption")
    return conversation([("user", prompt), ("assistant", text)], images[:1])


def _text_rows(path: Path, wanted: Mapping[str, str | None]) -> RawRows:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    tab = ".tsv" in path.suffixes
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.reader(stream, delimiter="\t" if tab else ",")
            header = next(table, [])
            places = [header.index(name) for name in _columns(header, wanted, str(path))]
            number = 0
            while True:
                try:
                    cells = next(table)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield RawRow(path.name, number, BadRow("unreadable row", str(error)))
                else:
                    if len(cells) == len(header):
                        image, text = (cells[at] for at in places)
                        content: object = {"images": [image] if image else [], "text": text}
                    else:
                        detail = f"{len(cells)} cells for {len(header)} columns"
                        content = BadRow("unreadable row", detail)
                    yield RawRow(path.name, number, content)
                number += 1
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _columns(
    header: Iterable[str], wanted: Mapping[str, str | None], where: str
) -> tuple[str, str]:
    names = list(header)
    found = []
    for kind, known in (("image", _IMAGE_COLUMNS), ("text", _TEXT_COLUMNS)):
        choices = [chosen] if (chosen := wanted[kind]) else known
        name = next((name for name in choices if name in names), None)
        if name is None:
            raise DataError(
                f"{where}: no column {' or '.join(choices[:3])} among {', '.join(names[:12])}; set "
                f"{kind}_column to the one that holds the {kind}s"
            )
        found.append(name)
    return found[0], found[1]
