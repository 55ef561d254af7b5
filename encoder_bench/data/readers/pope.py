"""POPE: is an object in the image, asked so that an absent one is random, popular or likely.

Reference: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models" (arXiv
2305.10355); the JSON lines of RUCAIBox/POPE, `output/coco/coco_pope_*.json`.
"""

from collections.abc import Iterator

from encoder_bench.base.errors import DataError
from encoder_bench.data.files import DataFiles, coco_id
from encoder_bench.data.rows import Row, Text, parse_json
from encoder_bench.data.sample import Sample, Split

SETTINGS = ("random", "popular", "adversarial")
SOURCES: dict[str, tuple[str, ...]] = {
    **{setting: (f"pope/coco_pope_{setting}.json",) for setting in SETTINGS},
    "all": (),
}


class _Question(Row):
    image: Text
    label: str
    text: Text
    question_id: int | str | None = None


def pope_samples(files: DataFiles, task: str, source: str, split: Split) -> Iterator[Sample]:
    """Yield one sample per question of one setting, or of all three (`source = "all"`)."""
    if split != "test":
        raise DataError(f"{files.root}: POPE has no {split} split; train on MCI instead")
    for setting in SETTINGS if source == "all" else (source,):
        path = files.require("pope", f"coco_pope_{setting}.json")
        lines = [
            (f"{path}:{number}", line)
            for number, line in enumerate(path.read_bytes().split(b"\n"), start=1)
            if line.strip()
        ]
        if not lines:
            raise DataError(f"{path}: is empty")
        for index, (where, line) in enumerate(lines):
            row = parse_json(line, _Question, where)
            label = row.label.lower()
            if label not in ("yes", "no"):
                raise DataError(f"{where}: 'label' is {row.label!r}, neither yes nor no")
            number = coco_id(row.image)
            image_id = row.image if number is None else number
            image = files.image(image_id, where, split="val", name=row.image)
            name = f"{task}/{setting}/{index if row.question_id is None else row.question_id}"
            answer, facets = f"{label.capitalize()}.", {"setting": setting, "answer": label}
            yield Sample(name, task, *image, row.text, (answer,), answer, {**facets})
