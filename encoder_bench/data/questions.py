"""Counting and identification questions made from any COCO-format instances file, balanced.

Within every category each answer is right equally often, so that the question's text tells
nothing; counts begin at zero. Words and files are GVTBench's, so that its reader and tasks take
them. Images with a crowd region are left out, because nothing in them can be counted.
"""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from encoder_bench.base.errors import DataError
from encoder_bench.base.files import write_text
from encoder_bench.data.files import coco_id
from encoder_bench.data.readers.captions import Instances, read_instances
from encoder_bench.data.readers.gvtbench import counting_question, existence_question

MAX_COUNT = 20
"""Counts above it are not asked for."""


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
        DataError: malformed, federated (LVIS), or too few images for a balanced question.
    """
    instances = read_instances(source)
    if instances.federated:
        raise DataError(
            f"{source}: a federated file, which does not say what an image lacks; use a file that "
            "names every object, such as COCO's own"
        )
    names = {number: _image_name(number, instances, images) for number in instances.names}
    made = {}
    for name, make in (("coco_oc", _counting), ("coco_mci", _identification)):
        asked = make(instances, questions, random.Random(f"{name} {seed}"))
        if not asked:
            raise DataError(
                f"{source}: no category has enough images for balanced {name} questions"
            )
        random.Random(f"{name} order {seed}").shuffle(asked)
        by_question: dict[str, Counter[str]] = defaultdict(Counter)
        for _, question, answer in asked:
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
            for image, question, answer in asked
        ]
        text = json.dumps(rows, indent=1, ensure_ascii=False)
        write_text(output / "gvtbench" / f"{name}.json", text + "\n")
        shares = (100 * right / len(asked) for right in (constant, majority))
        made[name] = BalancedQuestions(rows, *shares)
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


_Asked = list[tuple[int, str, str]]
"""Image id, question, answer."""


def _usable(instances: Instances) -> list[int]:
    """Return the images with any object and without a crowd region."""
    crowded = instances.crowded
    return [image for image, counts in instances.counts.items() if counts and image not in crowded]


def _counting(instances: Instances, wanted: int, rng: random.Random) -> _Asked:
    """Ask each category for counts 0 to K, each of them on the same number of images.

    That number is one for all categories, the smallest that makes enough questions: fewer images
    per count leave room for higher counts.
    """
    groups: dict[str, list[list[int]]] = {
        name: [[] for _ in range(MAX_COUNT + 1)] for name in instances.categories
    }
    for image in _usable(instances):
        for name, group in groups.items():
            count = instances.counts[image][name]
            if count <= MAX_COUNT:
                group[count].append(image)
    enough, most = 0, 0
    for quota in range(1, max((len(g[0]) for g in groups.values()), default=0) + 1):
        total = sum(quota * (_highest(group, quota) + 1) for group in groups.values())
        if total > most:
            enough, most = quota, total
        if total >= wanted or not total:
            break
    return [
        (image, counting_question(name), str(count))
        for name, group in groups.items()
        for count in range(_highest(group, enough) + 1)
        for image in rng.sample(group[count], enough)
    ]


def _highest(group: list[list[int]], quota: int) -> int:
    """Return the highest count up to which every count has enough images; -1 below 0 and 1."""
    enough = 0
    while enough <= MAX_COUNT and len(group[enough]) >= quota > 0:
        enough += 1
    return enough - 1 if enough > 1 else -1


def _identification(instances: Instances, wanted: int, rng: random.Random) -> _Asked:
    """Ask for each category on as many images that have it as on ones that lack it."""
    images: dict[str, tuple[list[int], list[int]]] = {n: ([], []) for n in instances.categories}
    for image in _usable(instances):
        for name, (having, lacking) in images.items():
            (having if instances.counts[image][name] else lacking).append(image)
    halves = [min(len(having), len(lacking)) for having, lacking in images.values()]
    quota = 0
    while quota < max(halves, default=0) and sum(2 * min(quota, h) for h in halves) < wanted:
        quota += 1
    return [
        (image, existence_question(name), answer)
        for (name, pair), half in zip(images.items(), halves, strict=True)
        for answer, group in zip(("Yes.", "No."), pair, strict=True)
        for image in rng.sample(group, min(quota, half))
    ]
