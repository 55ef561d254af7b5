"""Which images to ask about which category, so that the question alone does not tell the answer.

Within every category each answer is right equally often. Images with a crowd region are left out,
because nothing in them can be counted.
"""

import heapq
import random
from collections import Counter

from encoder_bench.data.readers.captions import Instances

MAX_COUNT = 20
"""Counts above it are not asked for."""

Asked = list[tuple[int, str, int]]
"""Image id, category, and how many of it are there."""


def _usable(instances: Instances) -> list[int]:
    """Return the images with any object and without a crowd region."""
    crowded = instances.crowded
    return [image for image, counts in instances.counts.items() if counts and image not in crowded]


def balanced_counts(instances: Instances, wanted: float, rng: random.Random) -> Asked:
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
        (image, name, count)
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


def balanced_presence(instances: Instances, wanted: float, rng: random.Random) -> Asked:
    """Ask for each category on as many images that have it as on ones that lack it.

    Of those that lack it, ones that have had fewer "no" than "yes" come first, so that an image
    with many objects is no more often "yes" than one with few.
    """
    images: dict[str, tuple[list[int], list[int]]] = {n: ([], []) for n in instances.categories}
    for image in _usable(instances):
        for name, (having, lacking) in images.items():
            (having if instances.counts[image][name] else lacking).append(image)
    halves = [min(len(having), len(lacking)) for having, lacking in images.values()]
    quota = 0
    while quota < max(halves, default=0) and sum(2 * min(quota, h) for h in halves) < wanted:
        quota += 1
    asked: Asked = []
    owed: Counter[int] = Counter()  # how many more "yes" than "no" an image has had
    for (name, (having, lacking)), half in zip(images.items(), halves, strict=True):
        present = rng.sample(having, min(quota, half))
        owed.update(present)
        rng.shuffle(lacking)
        absent = heapq.nlargest(len(present), lacking, key=lambda image: owed[image])
        owed.subtract(absent)
        asked += [(image, name, instances.counts[image][name]) for image in present + absent]
    return asked
