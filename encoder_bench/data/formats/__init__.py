"""The formats of training mixtures, and the index of a source's rows.

A row that cannot be trained on is counted by its reason and never raised, so that one bad row of a
million costs one.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from encoder_bench.base.errors import DataError
from encoder_bench.base.paths import visible, with_home
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import SourceSettings, load_task
from encoder_bench.data.folder import DataFolder, is_scenes, open_data
from encoder_bench.data.formats import json_files, shards, tables
from encoder_bench.data.formats.row import (
    BadRow,
    Dialogue,
    Place,
    RawRow,
    RawRows,
    note_skipped,
    parse,
)
from encoder_bench.data.index import Index, RowMaker, open_index

FORMAT_VERSION = "3"
"""Raised where the same file gives other rows, so that no earlier index is read."""
SCHEMA = pa.schema(
    {
        "number": pa.int64(),
        "images": pa.list_(pa.string()),
        "users": pa.list_(pa.string()),
        "assistants": pa.list_(pa.string()),
    }
)


class Format(NamedTuple):
    """How a source's rows are read.

    Attributes:
        rows: yields what the files hold.
        endings: of the files that a folder is searched for.
        prepare: what is to be done before, and where images then are.
    """

    rows: Callable[[Place], RawRows]
    endings: tuple[str, ...] = ()
    prepare: Callable[[Place, Reporter], Place] = lambda place, reporter: place


def _chat_rows(place: Place) -> RawRows:
    is_json = place.files[0].suffix in _JSON
    return json_files.rows(place) if is_json else tables.conversation_rows(place)


def _identify_folder(place: Place, reporter: Reporter) -> Place:
    folder, recipes = _folder(place), {task: load_task(task) for task in place.source.tasks}
    # of the samples, since images that come later are in no fingerprint of the folder
    tables = [folder.task_samples(*named, "train") for named in recipes.items()]
    samples = [(table.fingerprint, sorted(table.missing())) for table in tables]
    asked = {task: recipe.scoring() for task, recipe in recipes.items()}
    return replace(place, identity=repr((folder.fingerprint(), samples, asked)))


def _folder(place: Place) -> DataFolder:
    return DataFolder(place.images.name, place.images, images_required=False)


def _task_rows(place: Place) -> RawRows:
    """Yield the training samples of tasks, asked and answered as their recipes say."""
    folder, number = _folder(place), 0
    for task in place.source.tasks:
        recipe = load_task(task)
        for sample in folder.task_samples(task, recipe, "train"):
            asked, answer = recipe.fill_prompt(sample.question), recipe.fill_answer(sample.target)
            image = os.path.relpath(sample.image_path, place.images)
            yield RawRow(task, number, Dialogue([("user", asked), ("assistant", answer)], [image]))
            number += 1


_TABLES = (".arrow", ".parquet")
_COMPUTED = re.compile(r"cache-[0-9a-f]{16}(_\d+_of_\d+)?\.arrow")
_JSON = (".json", ".jsonl")
FORMATS = {
    "llava": Format(json_files.rows, _JSON),
    "chat": Format(_chat_rows, (*_TABLES, *_JSON), tables.prepare),
    "captions": Format(tables.caption_rows, (*_TABLES, ".tsv", ".csv"), tables.prepare),
    "webdataset": Format(shards.rows, (".tar",), shards.prepare),
    "folder": Format(_task_rows, prepare=_identify_folder),
}


def locate(source: SourceSettings, root: Path, reporter: Reporter) -> Place:
    """Return where a source's data is; `root` is what its relative paths begin at.

    Raises:
        DataError: the path names no file, the image folder is none, or the Hub cannot be read.
    """
    return FORMATS[source.format].prepare(find_place(source, root, reporter), reporter)


def find_place(source: SourceSettings, root: Path, reporter: Reporter | None = None) -> Place:
    """Return a source's files, if it is not a data folder, and its images; reads no file.

    Scenes that it names are drawn where they are not yet.

    Raises:
        DataError: the path names no file, or the image folder is none.
    """
    where, kind = f"source '{source.name}'", FORMATS[source.format]
    if source.format == "folder":
        name = str(source.path)
        folder = open_data(
            name if name == "coco" or is_scenes(name) else str(root / with_home(name)),
            reporter,
            images_required=False,
            flag=f"{where}: path",
        )
        return Place(source, root, (), folder.root.resolve(), trusted=True)
    images = root / with_home(source.images)
    if not images.is_dir():
        raise DataError(
            f"{where}: images = '{source.images}': no folder {images}; paths begin at {root} "
            "(--train-data)"
        )
    files = [] if source.hub else _files(source, root, kind)
    if not files and not source.hub:
        raise DataError(
            f"{where}: no file {root / str(source.path)}"
            f"{' or none in it that ends in ' + ' or '.join(kind.endings)}; paths begin at "
            f"{root} (--train-data)"
        )
    return Place(source, root, tuple(files), images)


def _files(source: SourceSettings, root: Path, kind: Format) -> list[Path]:
    """Return the files of a source's path; of a folder those of the first ending that is there.

    Of a data set's folder they are those of its split, by the names that the Hub gives them.
    """
    pattern = str(with_home(str(source.path)))
    path = root / pattern
    if path.is_dir():
        split = path / source.split
        path = split if (path / "dataset_dict.json").is_file() and split.is_dir() else path
        files = next(filter(None, (visible(path, f"**/*{end}") for end in kind.endings)), [])
        # beside a saved set's own files lie those that `map` and `filter` of datasets computed
        files = [file for file in files if not _COMPUTED.fullmatch(file.name)]
        parts = (f"{source.split}-", f"{source.split}.")
        of_split = [file for file in files if file.name.startswith(parts)]
        return of_split if of_split and kind.prepare is tables.prepare else files
    if path.is_file():
        return [path]
    if source.format == "webdataset" and "{" in pattern:
        return shards.expand(root, pattern)
    base = Path(path.anchor) if Path(pattern).is_absolute() else root
    matching = (file for file in base.glob(pattern.lstrip("/")) if file.is_file())
    return sorted(file for file in matching if not file.name.startswith("."))


def open_source(place: Place, reporter: Reporter) -> Index:
    """Return the index of a source's rows (`SCHEMA`), which is made where files have changed.

    Its `about` holds `read`, `files` (with the number of each one's first row), `skipped` (by
    reason: count and the first examples) and `sha256` of all that the rows say.

    Raises:
        DataError: a file is not of the format, or no row of it can be trained on.
    """
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in place.files]
    source = place.source.model_dump(exclude={"weight", "max_rows", "coco", "images"})
    key = repr((FORMAT_VERSION, source, stats, place.identity))
    return open_index(key, SCHEMA, partial(_make_rows, place, reporter), of=place.source.name)


def _make_rows(place: Place, reporter: Reporter) -> RowMaker:
    kind, source = FORMATS[place.source.format], place.source
    digest = hashlib.sha256()
    skipped: dict[str, dict[str, Any]] = {}
    files: list[tuple[str, int]] = []
    read = kept = 0
    with reporter.phase(f"reading {source.name}", unit="rows") as phase:
        for read, raw in enumerate(kind.rows(place), start=1):
            if not files or files[-1][0] != raw.file:
                files.append((raw.file, read - 1))
            try:
                parsed = parse(raw.content, source.prompt, image_first=source.format == "llava")
                digest.update(b"%d:%s" % (read - 1, msgspec.json.encode(parsed)))
            except BadRow as error:
                note_skipped(skipped, error.reason, f"{raw.file}: row {raw.number}: {error}")
            except UnicodeEncodeError as error:
                detail = f"half a surrogate pair ({error.reason})"
                note_skipped(skipped, "not Unicode", f"{raw.file}: row {raw.number}: {detail}")
            else:
                kept += 1
                yield {
                    "number": read - 1,
                    "images": parsed.images,
                    "users": [turn.user for turn in parsed.turns],
                    "assistants": [turn.assistant for turn in parsed.turns],
                }
            phase.advance()
    if not kept:
        first = next(iter(skipped.values()))["first"][0] if skipped else "no rows"
        raise DataError(
            f"source '{source.name}': nothing in {place.label} can be trained on as format "
            f"'{source.format}': {first}"
        )
    return {"read": read, "files": files, "skipped": skipped, "sha256": digest.hexdigest()}
