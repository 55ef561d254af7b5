"""Counting and identification questions made from any COCO-format instances file, balanced.

Words and files are GVTBench's, so that its reader and tasks take them.
"""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from encoder_bench.base.errors import DataError
from encoder_bench.data.files import coco_id, write_annotations
from encoder_bench.data.readers.balanced import balanced_counts, balanced_presence
from encoder_bench.data.readers.captions import Instances, read_instances
from encoder_bench.data.readers.gvtbench import question_and_answer


class BalancedQuestions(NamedTuple):
    """Rows in GVTBench's form, and what a blind answer would score on them, in percent."""

    rows: list[dict[str, Any]]
    constant: float
    majority: float


def write_questions(
    source: Path, output: Path, *, questions: int, seed: int = 0, images: str = ""
) -> dict[str, BalancedQuestions]:
    """Write `gvtbench/coco_oc.json` and `coco_mci.json` of a data folder, and return them by name.

    There are at least so many of each kind, where the file has enough images. `images` is the image
    folder within `output`, needed where file names are no COCO ids.

    Raises:
        DataError: malformed, federated (LVIS), too few images for a balanced question, or other
            questions are in the folder.
    """
    instances = read_instances(source)
    if instances.federated:
        raise DataError(
            f"{source}: a federated file, which does not say what an image lacks; use a file that "
            "names every object, such as COCO's own"
        )
    names = {number: _image_name(number, instances, images) for number in instances.names}
    made, texts = {}, {}
    for name, choose in (("coco_oc", balanced_counts), ("coco_mci", balanced_presence)):
        asked = choose(instances, questions, random.Random(f"{name} {seed}"))
        if not asked:
            raise DataError(
                f"{source}: no category has enough images for balanced {name} questions"
            )
        random.Random(f"{name} order {seed}").shuffle(asked)
        by_question: dict[str, Counter[str]] = defaultdict(Counter)
        pairs = [question_and_answer(name, category, count) for _, category, count in asked]
        for question, answer in pairs:
            by_question[question][answer] += 1
        constant = max(sum(by_question.values(), Counter()).values())
        majority = sum(max(answers.values()) for answers in by_question.values())
        rows = [
            {
                "image_id": names[image],
                "text_in": question,
                "text_out": answer,
                "n_obj_exist": instances.counts[image].total(),
            }
            for (image, _, _), (question, answer) in zip(asked, pairs, strict=True)
        ]
        text = json.dumps(rows, indent=1, ensure_ascii=False)
        texts[output / "gvtbench" / f"{name}.json"] = text + "\n"
        shares = (100 * right / len(asked) for right in (constant, majority))
        made[name] = BalancedQuestions(rows, *shares)
    write_annotations(texts)
    return made


def _image_name(number: int, instances: Instances, images: str) -> int | str:
    """Return how the reader finds an image: by its id where its file is named by it."""
    name = instances.names[number]
    if images:
        return f"{images}/{name}"
    if coco_id(name) != number:
        raise DataError(
            f"{instances.path}: image {number} has the file name {name!r}, which is no COCO id; "
            "--image-folder NAME says where in the data folder the files are"
        )
    return number
