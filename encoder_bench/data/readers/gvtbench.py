"""GVTBench's object counting (OC) and multi-class identification (MCI) questions, and their words.

Test questions come from its JSON files; training questions, which it does not have, are made from
an instances file in the same words, with zero counts and balanced answers.

Reference: Wang et al. 2023 (arXiv 2305.12223), repository TencentARC/GVT.
"""

import dataclasses
import functools
import math
import random
from collections.abc import Iterator, Set

from encoder_bench.base.hashing import hash_text
from encoder_bench.data.files import DataFiles
from encoder_bench.data.readers.balanced import balanced_counts, balanced_presence
from encoder_bench.data.readers.captions import Instances, read_instances
from encoder_bench.data.rows import Row, Text, read_rows
from encoder_bench.data.sample import Sample, Split

_BALANCED = "_balanced"
"""Ends a source whose training questions have each answer equally often within a category."""
SOURCES = {
    source: (f"gvtbench/{source.removesuffix(_BALANCED)}.json",)
    for source in (
        "coco_oc", "coco_mci", f"coco_oc{_BALANCED}", f"coco_mci{_BALANCED}", "vcr_oc", "vcr_mci",
    )
}  # fmt: skip
_QUESTIONS_PER_IMAGE = 4
_COUNTS_PER_CATEGORY = 1000
"""Balanced counting questions: more would leave the counts out that few images have."""
_MAX_COUNT = 9
_UNCHANGED = frozenset(
    (
        *("skis", "broccoli", "jeans", "pants", "shorts", "tights", "glasses", "sunglasses"),
        *("goggles", "tongs", "binoculars", "headphones", "bison", "food", "bread", "rice"),
    )
)
"""Words that are plurals already, or have none, and that inflect would change."""
_PLUS_S = """
bicycle|car|motorcycle|airplane|train|truck|boat|traffic light|fire hydrant|stop sign|parking meter
bird|cat|dog|horse|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee
snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle
cup|fork|spoon|bowl|banana|apple|orange|carrot|hot dog|pizza|donut|cake|chair|potted plant|bed
dining table|toilet|tv|laptop|remote|keyboard|cell phone|microwave|oven|toaster|sink|refrigerator
book|clock|vase|teddy bear|hair drier|circle|frame|ring|square|star|triangle"""
_PLURALS = {name: f"{name}s" for name in _PLUS_S.replace("\n", "|").split("|") if name} | {
    "person": "people", "bus": "buses", "bench": "benches", "sheep": "sheep", "knife": "knives",
    "wine glass": "wine glasses", "sandwich": "sandwiches", "couch": "couches", "mouse": "mice",
    "scissors": "scissors", "toothbrush": "toothbrushes", "cross": "crosses",
}  # fmt: skip
"""COCO's categories and the scenes' shapes, as inflect has them; its import takes seconds."""


class _Question(Row):
    image_id: int | str
    text_in: Text
    text_out: Text
    n_obj_exist: int


def gvt_samples(files: DataFiles, task: str, source: str, split: Split) -> Iterator[Sample]:
    """Return one sample per question."""
    return (_read if split == "test" else _generate)(files, task, source)


def _read(files: DataFiles, task: str, source: str) -> Iterator[Sample]:
    (name,) = SOURCES[source]
    path = files.require(*name.split("/"))
    for index, (where, row) in enumerate(read_rows(path, _Question)):
        image = files.image(row.image_id, where, split="val")
        answer, facets = row.text_out, _facets(row.n_obj_exist, row.text_out)
        yield Sample(f"{task}/{index}", task, *image, row.text_in, (answer,), answer, facets)


def _facets(objects: int, answer: str) -> dict[str, str | int]:
    """Return what scores are broken down by; the crowding bins are GVT's."""
    crowding = "1-9" if objects < 10 else "10-19" if objects < 20 else "20+"
    return {"n_obj_exist": objects, "answer": answer, "crowding": f"{crowding} objects"}


def _generate(files: DataFiles, task: str, source: str) -> Iterator[Sample]:
    instances = read_instances(files.require("coco", "instances_train2017.json"))
    if source.endswith(_BALANCED):
        images = ((number, instances.image(files, number)) for number in instances.counts)
        left_out = {number for number, image in images if files.is_tested(*image)}
        asked = _balanced(instances, source, left_out)
    else:
        asked = _four_per_image(instances, source)
    for number, pairs in asked:
        image, objects = instances.image(files, number), instances.counts[number].total()
        for index, (question, answer) in enumerate(pairs):
            name, facets = f"{task}/{number}/{index}", _facets(objects, answer)
            yield Sample(name, task, *image, question, (answer,), answer, facets)


_Pairs = list[tuple[str, str]]


def _balanced(
    instances: Instances, source: str, left_out: Set[int]
) -> Iterator[tuple[int, _Pairs]]:
    """Yield each image with all that `data questions` would ask of it."""
    choose, wanted = balanced_presence, math.inf
    if "_oc" in source:
        choose, wanted = balanced_counts, _COUNTS_PER_CATEGORY * len(instances.categories)
    usable = dataclasses.replace(instances, crowded=instances.crowded | left_out)
    by_image: dict[int, _Pairs] = {}
    for number, name, count in choose(usable, wanted, random.Random(source)):
        by_image.setdefault(number, []).append(question_and_answer(source, name, count))
    yield from by_image.items()


def _four_per_image(instances: Instances, source: str) -> Iterator[tuple[int, _Pairs]]:
    """Yield each image with at most four questions."""
    make = _counting if "_oc" in source else _identification
    numbers = list(instances.counts)
    for number in numbers:
        rng = random.Random(hash_text("gvtbench", source, str(number)))
        if number not in instances.crowded:
            yield number, make(instances, number, numbers, rng)


def _counting(instances: Instances, image: int, images: list[int], rng: random.Random) -> _Pairs:
    """Ask for present categories, and for one that is absent."""
    counts = instances.counts[image]
    present = [name for name, count in counts.items() if count <= _MAX_COUNT]
    rng.shuffle(present)
    absent = _absent(instances, image, images, rng, 1)
    asked = [*present[: _QUESTIONS_PER_IMAGE - len(absent)], *absent]
    rng.shuffle(asked)
    return [(counting_question(name), str(counts[name])) for name in asked]


def _identification(
    instances: Instances, image: int, images: list[int], rng: random.Random
) -> _Pairs:
    """Ask for as many present as absent categories, so that half of the answers are yes."""
    present = list(instances.counts[image])
    rng.shuffle(present)
    absent = _absent(instances, image, images, rng, min(_QUESTIONS_PER_IMAGE // 2, len(present)))
    asked = [(name, "Yes.") for name in present[: len(absent)]] + [(name, "No.") for name in absent]
    rng.shuffle(asked)
    return [(existence_question(name), answer) for name, answer in asked]


def _absent(
    instances: Instances, image: int, images: list[int], rng: random.Random, number: int
) -> list[str]:
    """Return categories that the image lacks, drawn as they occur in another random image.

    Drawn so, a category is asked for about as often where it is absent as where it is present,
    unless most images have it, as people in COCO: sources that end in `_balanced` leave those out
    that have no counterpart.
    """
    found: dict[str, None] = {}
    for _ in range(50 * number):
        if len(found) == number:
            break
        other = instances.counts[rng.choice(images)]
        names = [name for name in other if name not in instances.counts[image]]
        if names:
            found[rng.choice(names)] = None
    return list(found)


def question_and_answer(source: str, name: str, count: int) -> tuple[str, str]:
    """Return what is asked of a category that an image has `count` times, and the answer."""
    if "_oc" in source:
        return counting_question(name), str(count)
    return existence_question(name), "Yes." if count else "No."


def counting_question(name: str) -> str:
    """Return GVTBench's question of how many of a category there are."""
    return f"How many {plural(name)} are there in the image?"


def existence_question(name: str) -> str:
    """Return GVTBench's question of whether a category is there."""
    return f"Does {spoken(name)} exist in the image?"


def spoken(name: str) -> str:
    """Return a category's name as a sentence has it.

    >>> [spoken(name) for name in ("wine glass", "traffic_light", "bow_(ribbons)")]
    ['wine glass', 'traffic light', 'bow (ribbons)']
    """
    return " ".join(name.replace("_", " ").split())


@functools.cache
def plural(name: str) -> str:
    """Return the plural of a category name.

    >>> [plural(name) for name in ("wine glass", "bus", "person", "baby", "boy", "cup", "skis")]
    ['wine glasses', 'buses', 'people', 'babies', 'boys', 'cups', 'skis']
    >>> [plural(name) for name in ("fireman", "bowl_of_soup", "bow_(ribbons)", "hair drier")]
    ['firemen', 'bowls of soup', 'bows (ribbons)', 'hair driers']
    """
    head, bracket, rest = spoken(name).partition(" (")
    if head.rpartition(" ")[2].lower() in _UNCHANGED:
        return f"{head}{bracket}{rest}"
    if head in _PLURALS:
        return f"{_PLURALS[head]}{bracket}{rest}"
    import inflect

    return f"{inflect.engine().plural_noun(head)}{bracket}{rest}"
