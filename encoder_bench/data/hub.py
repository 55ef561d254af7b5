"""Data sets of the Hub, or saved by `datasets`, written to disk in the official layouts.

Columns are matched by name, since owners move their data sets; those of lmms-lab/VQAv2 and
lmms-lab/COCO-Caption2017 fit.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from encoder_bench.base.errors import DataError
from encoder_bench.base.files import atomic_path
from encoder_bench.base.progress import Phase, Reporter
from encoder_bench.data.files import write_annotations
from encoder_bench.data.images import as_rgb, load_image

Kind = Literal["vqav2", "captions"]
Part = Literal["train", "val"]
_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "vqav2": ("image", "image_id", "question", "question_id", "answers", "multiple_choice_answer"),
    "captions": ("image", "id", "answer"),
}
_ANNOTATION_COLUMNS = ("multiple_choice_answer", "answers", "question_type", "answer_type")


def import_dataset(
    source: str,
    output: Path,
    *,
    kind: Kind,
    split: str,
    part: Part,
    revision: str | None = None,
    streaming: bool = False,
    reporter: Reporter,
) -> int:
    """Write a data set's split as images and JSON in the official layout; return its row count.

    The source is a Hub id or a folder that `Dataset.save_to_disk` wrote; `split` is its own name of
    the split, `part` what it becomes. Streaming reads row by row: the set is not kept twice.

    Raises:
        DataError: unreachable, no such split, columns are missing, or other annotations are there.
    """
    rows = open_rows(source, split, revision, streaming=streaming)
    columns = rows.column_names or list(next(iter(rows.take(1)), {}))
    missing = [name for name in _COLUMNS[kind] if name not in columns]
    if missing:
        raise DataError(
            f"{source}: no column '{missing[0]}' for {kind}; it has {', '.join(columns)}"
        )
    # VQAv2's images are those of 2014, which 2017 split otherwise: each number must mean one image
    year = 2014 if kind == "vqav2" else 2017
    images = output / "coco" / f"{part}{year}"
    with reporter.phase(f"importing {source}", None if streaming else len(rows), "rows") as phase:
        count, contents = (_vqa if kind == "vqav2" else _captions)(
            _counted(rows, phase, source), images, part
        )
    write_annotations(
        {
            output / name: json.dumps(content, ensure_ascii=False) + "\n"
            for name, content in contents.items()
        }
    )
    return count


def resolved_revision(source: str) -> str:
    """Return the commit that a Hub data set's main branch is at."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(source, timeout=10).sha)
    except Exception as error:  # the Hub's many errors mean one thing here
        raise DataError(
            f"{source}: the Hub cannot be reached or has no such data set ({_first(error)}); where "
            "there is no network, copy a folder of Dataset.save_to_disk and use `data import`"
        ) from error


def open_rows(
    source: str,
    split: str,
    revision: str | None = None,
    *,
    config: str | None = None,
    data_files: list[str] | None = None,
    streaming: bool = False,
) -> Any:
    """Return a split of a Hub data set, or of a folder that `Dataset.save_to_disk` wrote.

    A builder's name (`parquet`) reads `data_files` instead.

    Raises:
        DataError: it cannot be read, or there is no such configuration or split.
    """
    import datasets

    try:
        if Path(source).is_dir():
            loaded = datasets.load_from_disk(source)
            rows = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
            return rows.to_iterable_dataset() if streaming else rows
        return datasets.load_dataset(
            source,
            config,
            split=split,
            revision=revision,
            data_files=data_files,
            streaming=streaming,
        )
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = _first(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        if data_files:
            files = f"{data_files[0]}{f' and {len(data_files) - 1} more' * (len(data_files) > 1)}"
            raise DataError(f"{files}: cannot be read as {source} ({reason})") from error
        raise DataError(
            f"{source}: split '{split}' cannot be read ({reason}); where the Hub cannot "
            "be reached, pass a folder that Dataset.save_to_disk wrote"
        ) from error


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _counted(rows: Iterable[dict[str, Any]], phase: Phase, source: str) -> Iterator[dict[str, Any]]:
    count = 0
    try:
        for row in rows:
            yield row
            count += 1
            phase.advance()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source}: reading stopped after {count} rows ({_first(error)}); run the same "
            "command again, images that are written already are not written again"
        ) from error


_Written = tuple[int, dict[str, dict[str, Any]]]
"""Rows read, and the content of each file."""


def _vqa(rows: Iterable[dict[str, Any]], images: Path, part: Part) -> _Written:
    questions, annotations = [], []
    saved: set[Path] = set()  # several questions are about one image
    for index, row in enumerate(rows):
        ids = {name: _whole_number(row, name, index) for name in ("image_id", "question_id")}
        path = images / f"COCO_{images.name}_{ids['image_id']:012}.png"
        if path not in saved:
            saved.add(path)
            _save_image(row["image"], path)
        questions.append({**ids, "question": row["question"]})
        annotations.append({**ids, **{n: row[n] for n in _ANNOTATION_COLUMNS if n in row}})
    return len(questions), {
        f"vqav2/v2_OpenEnded_mscoco_{part}2014_questions.json": {"questions": questions},
        f"vqav2/v2_mscoco_{part}2014_annotations.json": {"annotations": annotations},
    }


def _captions(rows: Iterable[dict[str, Any]], images: Path, part: Part) -> _Written:
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        image_id, (width, height) = _whole_number(row, "id", index), row["image"].size
        name = _save_image(row["image"], images / f"{image_id:012}.png")
        entries.append({"id": image_id, "file_name": name, "width": width, "height": height})
        captions = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
        for number, caption in enumerate(captions, start=len(annotations) + 1):
            annotations.append({"id": number, "image_id": image_id, "caption": caption})
    content = {"images": entries, "annotations": annotations}
    return len(entries), {f"coco/annotations/captions_{part}2017.json": content}


def _whole_number(row: dict[str, Any], name: str, index: int) -> int:
    try:
        return int(row[name])
    except (TypeError, ValueError):
        raise DataError(
            f"row {index}: '{name}' is {row[name]!r}, and the official layout has whole numbers"
        ) from None


def _save_image(image: Any, path: Path) -> str:
    """Write an image once, as PNG, which loses nothing, and return its name."""
    pixels = as_rgb(image, path)
    if not path.is_file():
        with atomic_path(path) as temporary:
            pixels.save(temporary, format="PNG")
    elif load_image(path).tobytes() != pixels.tobytes():
        raise DataError(
            f"{path}: is there and is another image, of another data set or revision; import into "
            "a folder of its own"
        )
    return path.name
