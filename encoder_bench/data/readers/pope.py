"""POPE: is an object in the image, asked so that an absent one is random, popular or likely.

Reference: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models" (arXiv
2305.10355); the JSON lines of RUCAIBox/POPE, `output/coco/coco_pope_*.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError
from encoder_bench.data.files import DataFiles, coco_id, text
from encoder_bench.data.sample import Sample, Split

SETTINGS = ("random", "popular", "adversarial")
SOURCES: dict[str, tuple[str, ...]] = {
    **{setting: (f"pope/coco_pope_{setting}.json",) for setting in SETTINGS},
    "all": (),
}


def pope_samples(files: DataFiles, task: str, source: str, split: Split) -> list[Sample]:
    """Return one sample per question of one setting, or of all three (`source = "all"`)."""
    if split != "test":
        raise DataError(f"{files.root}: POPE has no {split} split; train on MCI instead")
    samples = []
    for setting in SETTINGS if source == "all" else (source,):
        path = files.require("pope", f"coco_pope_{setting}.json")
        for index, (where, row) in enumerate(_lines(path)):
            name = text(row, "image", where)
            number = coco_id(name)
            label = text(row, "label", where).lower()
            if label not in ("yes", "no"):
                raise DataError(f"{where}: 'label' is {label!r}, neither yes nor no")
            image_id = name if number is None else number
            image = files.image(image_id, where, split="val", name=name)
            answer = f"{label.capitalize()}."
            samples.append(
                Sample(
                    f"{task}/{setting}/{row.get('question_id', index)}",
                    task,
                    *image,
                    question=text(row, "text", where),
                    references=(answer,),
                    target=answer,
                    facets={"setting": setting, "answer": label},
                )
            )
    return samples


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: not an object")
        rows.append((where, row))
    if not rows:
        raise DataError(f"{path}: no questions in it")
    return rows
