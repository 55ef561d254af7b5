"""Data sets of the Hub, or saved by `datasets`, written to disk in the official layouts.

What belongs here: columns to files. Afterwards the ordinary readers read them, so that Hub and
official downloads are scored by one and the same path. Columns are matched by name, since owners
move their data sets; those of lmms-lab/VQAv2 and lmms-lab/COCO-Caption2017 fit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from encoder_bench.atomic import atomic_path, write_text
from encoder_bench.errors import DataError
from encoder_bench.progress import Reporter

Kind = Literal["vqav2", "captions"]
Part = Literal["train", "val"]
_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "vqav2": ("image", "image_id", "question", "question_id", "answers", "multiple_choice_answer"),
    "captions": ("image", "id", "answer"),
}
_ANNOTATION_COLUMNS = ("question_type", "answer_type")


def import_dataset(
    source: str,
    output: Path,
    *,
    kind: Kind,
    split: str,
    part: Part,
    revision: str | None = None,
    reporter: Reporter,
) -> int:
    """Write a data set's split as images and JSON in the official layout.

    Args:
        source: a Hub id, or a folder that `Dataset.save_to_disk` wrote.
        output: a data folder; other parts in it stay.
        kind: `vqav2` (questions with ten answers) or `captions`.
        split: the data set's own name of the split.
        part: `train` or `val`, which file names it gets.
        revision: of the Hub repository.
        reporter: where progress goes.

    Returns:
        How many rows were written.

    Raises:
        DataError: unreachable, no such split, or columns are missing; names them.
        EncoderBenchError: the folder cannot be written.
    """
    rows = open_rows(source, split, revision)
    missing = [name for name in _COLUMNS[kind] if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{source}: no column '{missing[0]}' for {kind}; it has {', '.join(rows.column_names)}"
        )
    images = output / "coco" / f"{part}2017"
    images.mkdir(parents=True, exist_ok=True)
    with reporter.phase(f"importing {source}", len(rows), "rows") as phase:
        write = _write_vqa if kind == "vqav2" else _write_captions
        write(_counted(rows, phase), output, images, part)
    return len(rows)


def open_rows(source: str, split: str, revision: str | None = None) -> Any:
    """Return a split of a Hub data set, or of a folder that `Dataset.save_to_disk` wrote.

    Raises:
        DataError: it cannot be read; says what to pass instead.
    """
    import datasets

    try:
        if Path(source).is_dir():
            loaded = datasets.load_from_disk(source)
            return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        return datasets.load_dataset(source, split=split, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{source}: split '{split}' cannot be read ({first}); where the Hub cannot be reached, "
            "pass a folder that Dataset.save_to_disk wrote"
        ) from error


def _counted(rows: Iterable[dict[str, Any]], phase: Any) -> Iterable[dict[str, Any]]:
    for row in rows:
        yield row
        phase.advance()


def _save_image(image: Any, folder: Path, image_id: int) -> str:
    """Write an image once, as PNG, which loses nothing, and return its name."""
    name = f"{image_id:012}.png"
    if not (folder / name).is_file():
        with atomic_path(folder / name) as temporary:
            image.convert("RGB").save(temporary, format="PNG")
    return name


def _write_vqa(rows: Iterable[dict[str, Any]], output: Path, images: Path, part: Part) -> None:
    questions, annotations = [], []
    for row in rows:
        ids = {"image_id": int(row["image_id"]), "question_id": int(row["question_id"])}
        _save_image(row["image"], images, ids["image_id"])
        questions.append({**ids, "question": row["question"]})
        annotations.append(
            {
                **ids,
                "multiple_choice_answer": row["multiple_choice_answer"],
                "answers": row["answers"],
                **{name: row[name] for name in _ANNOTATION_COLUMNS if name in row},
            }
        )
    year = f"{part}2014"
    folder = output / "vqav2"
    _write(folder / f"v2_OpenEnded_mscoco_{year}_questions.json", {"questions": questions})
    _write(folder / f"v2_mscoco_{year}_annotations.json", {"annotations": annotations})


def _write_captions(rows: Iterable[dict[str, Any]], output: Path, images: Path, part: Part) -> None:
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row in rows:
        image_id = int(row["id"])
        name = _save_image(row["image"], images, image_id)
        width, height = row["image"].size
        entries.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for caption in row["answer"]:
            number = len(annotations) + 1
            annotations.append({"id": number, "image_id": image_id, "caption": caption})
    content = {"images": entries, "annotations": annotations}
    _write(output / "coco" / "annotations" / f"captions_{part}2017.json", content)


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, ensure_ascii=False) + "\n")
