"""The drawn scenes as a pool for pretraining, never one of the suite's own test images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from encoder_bench.base.progress import Reporter
from encoder_bench.data.scenes.build import GENERATOR_VERSION, SceneSizes, scene_stream
from encoder_bench.data.scenes.grammar import captions, describe
from encoder_bench.data.scenes.graph import (
    CANVAS,
    COLOURS,
    KINDS,
    Scene,
    Thing,
    render,
    sample_scene,
)
from zoo.architecture import CAPTION_TOKENS
from zoo.pool import ImagePool, caption_ids, stack_images

STREAMS = {"train": 7_001, "probe": 7_002, "held-out": 7_003}
"""First number of each stream's seed; the suite's own streams have other seeds."""
_SUITE_SPLITS = ("val", "test")
_TOGETHER = 64
"""Scenes that a process draws at once."""
_LISTINGS = 3
"""Captions that name size, colour, kind and place of every thing, each in another order."""


def scene_classes(scene: Scene | None = None) -> dict[str, dict[str, bool]]:
    """Return what is asked of a scene, by what it is about, with the answers (all no without one).

    >>> {about: len(classes) for about, classes in scene_classes().items()}
    {'kind': 6, 'count': 12, 'colour': 36, 'position': 24}
    """
    things = scene.things if scene else ()
    counts = Counter(thing.kind for thing in things)
    pairs = {(thing.kind, thing.colour) for thing in things}
    sides = {(t.kind, side) for t in things for side in _sides(t)}
    return {
        "kind": {kind: counts[kind] > 0 for kind in KINDS},
        "count": {f"{n} or more {kind}": counts[kind] >= n for kind in KINDS for n in (2, 3)},
        "colour": {f"{c} {kind}": (kind, c) in pairs for kind in KINDS for c in COLOURS},
        "position": {f"{kind} {s}": (kind, s) in sides for kind in KINDS for s in _SIDES},
    }


_SIDES = ("left", "right", "top", "bottom")


def _sides(thing: Thing) -> tuple[str, str]:
    middle = CANVAS / 2
    return ("left" if thing.x < middle else "right", "top" if thing.y < middle else "bottom")


def scene_pool(
    stream: str, count: int, *, tokenizer: Any, reporter: Reporter, seed: int = 0
) -> ImagePool:
    """Return `count` scenes with five short captions and three listings of everything each.

    Pools of different `STREAMS` share no image; `seed` changes every image. All cores draw.
    """
    images: list[np.ndarray] = []
    sentences: list[tuple[tuple[int, ...], ...]] = []
    labels: list[list[int]] = []
    excluded = _suite_pictures(SceneSizes())
    skipped = 0
    root = np.random.SeedSequence([STREAMS[stream], seed])
    draw = partial(_drawn, tokenizer=tokenizer)
    with (
        ProcessPoolExecutor() as workers,
        reporter.phase(f"drawing {stream} scenes", count, "images") as phase,
    ):
        while missing := count - len(images):
            seeds = root.spawn(missing)
            parts = [seeds[start : start + _TOGETHER] for start in range(0, missing, _TOGETHER)]
            for part in workers.map(draw, parts):
                for pixels, captions_of_it, asked in part:
                    if _digest(pixels) in excluded:
                        skipped += 1
                        continue
                    images.append(pixels)
                    sentences.append(captions_of_it)
                    labels.append(asked)
                    phase.advance()
    return ImagePool(
        images=stack_images(images),
        captions=tuple(sentences),
        labels=torch.tensor(labels, dtype=torch.float32),
        classes={about: tuple(classes) for about, classes in scene_classes().items()},
        description={
            "kind": "scenes",
            "stream": stream,
            "seed": seed,
            "generator_version": GENERATOR_VERSION,
            "images": count,
            "captions_an_image": f"5 short ones and {_LISTINGS} listings of every thing",
            "suite_test_images_met_and_passed_over": skipped,
        },
    )


def _drawn(
    seeds: Sequence[np.random.SeedSequence], tokenizer: Any
) -> list[tuple[np.ndarray, tuple[tuple[int, ...], ...], list[int]]]:
    """Return pixels, caption ids and labels of the scene of each seed."""
    rows = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        texts = (*captions(scene, rng), *(describe(scene, rng) for _ in range(_LISTINGS)))
        ids = tuple(caption_ids(tokenizer, text, length=CAPTION_TOKENS) for text in texts)
        asked = [int(yes) for classes in scene_classes(scene).values() for yes in classes.values()]
        rows.append((np.asarray(render(scene)), ids, asked))
    return rows


@cache
def _suite_pictures(sizes: SceneSizes) -> frozenset[str]:
    """Return the digests of the suite's own validation and test pictures, drawn again."""
    return frozenset(
        _digest(np.asarray(render(scene)))
        for split in _SUITE_SPLITS
        for scene in _first(scene_stream(sizes.seed, split), getattr(sizes, split))
    )


def _first(stream: Iterable[tuple[Scene, Any]], count: int) -> Iterator[Scene]:
    return (scene for scene, _ in islice(stream, count))


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()
