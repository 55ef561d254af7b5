"""Which images to ask about which category, so that the question alone does not tell the answer.

Within every category each answer is right equally often. Images with a crowd region are left out,
because nothing in them can be counted.
"""

import heapq
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from encoder_bench.data.readers.captions import Instances

MAX_COUNT = 20
"""Counts above it are not asked for."""

Asked = list[tuple[int, str, int]]
"""Image id, category, and how many of it are there."""


def balanced_counts(instances: Instances, wanted: float, rng: random.Random) -> Asked:
    """Ask each category for counts 0 to K, each of them on the same number of images.

    That number is the category's own, the smallest that makes its share of the questions: fewer
    images per count allow higher counts.
    """
    return _balanced(instances, wanted, rng, lambda count: count)


def balanced_presence(instances: Instances, wanted: float, rng: random.Random) -> Asked:
    """Ask for each category on as many images that have it as on ones that lack it."""
    return _balanced(instances, wanted, rng, lambda count: min(count, 1))


class _Plan(NamedTuple):
    """Questions of one category: how many in all, and on how many images for each answer."""

    questions: int
    images: int


def _balanced(
    instances: Instances, wanted: float, rng: random.Random, answer: Callable[[int], int]
) -> Asked:
    """Ask every category equally many questions as far as its images go, `wanted` in all.

    Of the images that lack a category, ones that have had fewer questions about absent than about
    present categories come first, so that an image with many objects is no more often asked for
    what it has than one with few.
    """
    crowded = instances.crowded
    usable = [(i, own) for i, own in instances.counts.items() if own and i not in crowded]
    groups: dict[str, list[list[int]]] = {}
    for name in instances.categories:
        lacking = [image for image, own in usable if name not in own]
        groups[name] = [lacking, *([] for _ in range(answer(MAX_COUNT)))]
    for image, own in usable:
        for name, count in own.items():
            if answer(count) <= MAX_COUNT:
                groups[name][answer(count)].append(image)
    plans = {name: _plans(group) for name, group in groups.items()}

    def chosen(share: int) -> dict[str, _Plan]:
        return {n: p[min(bisect_left(p, (share, 0)), len(p) - 1)] for n, p in plans.items() if p}

    most = max((plan[-1].questions for plan in plans.values() if plan), default=0)
    shares = range(1, most + 1)
    enough = bisect_left(
        shares, wanted, key=lambda share: sum(plan.questions for plan in chosen(share).values())
    )
    asked: Asked = []
    owed: Counter[int] = Counter()  # how many more present than absent categories an image has had
    for name, plan in chosen(min(enough + 1, most)).items():
        lacking, *having = groups[name]
        answers = plan.questions // plan.images
        present = [i for group in having[: answers - 1] for i in rng.sample(group, plan.images)]
        owed.update(present)
        rng.shuffle(lacking)
        absent = heapq.nlargest(plan.images, lacking, key=lambda image: owed[image])
        owed.subtract(absent)
        asked += [(image, name, instances.counts[image][name]) for image in present + absent]
    return asked


def _plans(groups: list[list[int]]) -> list[_Plan]:
    """Return the ways to ask a category, images grouped by answer: more questions each time."""
    plans: list[_Plan] = []
    for images in range(1, min(map(len, groups[:2])) + 1):
        answers = next((n for n, g in enumerate(groups) if len(g) < images), len(groups))
        if not plans or answers * images > plans[-1].questions:
            plans.append(_Plan(answers * images, images))
    return plans
