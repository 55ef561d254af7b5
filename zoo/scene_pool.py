"""The drawn scenes as a pool for pretraining, never one of the suite's own test images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from encoder_bench.base.progress import Reporter
from encoder_bench.data.scenes.build import GENERATOR_VERSION, SceneSizes, scene_stream
from encoder_bench.data.scenes.grammar import captions, describe
from encoder_bench.data.scenes.graph import COLOURS, KINDS, MAX_THINGS, Scene, render, sample_scene
from zoo.architecture import CAPTION_TOKENS
from zoo.pool import ImagePool, caption_ids, stack_images

STREAMS = {"train": 7_001, "probe": 7_002, "held-out": 7_003}
"""First number of each stream's seed; the suite's own streams have other seeds."""
_SUITE_SPLITS = ("val", "test")
_MAX_COUNTED = 3
_LISTINGS = 3
"""Captions that name size, colour, kind and place of every thing, each in another order."""


def class_names() -> tuple[str, ...]:
    """Return the classes: each colour of each kind, one to three or more of a kind, the total.

    >>> len(class_names()), class_names()[0], class_names()[-1]
    (60, 'red circle', '6 things')
    """
    return (
        *(f"{colour} {kind}" for kind in KINDS for colour in COLOURS),
        *(f"at least {n} {kind}" for kind in KINDS for n in range(1, _MAX_COUNTED + 1)),
        *(f"{n} things" for n in range(1, MAX_THINGS + 1)),
    )


def scene_labels(scene: Scene) -> list[int]:
    """Return 0 or 1 for each of `class_names()`."""
    return [
        *(int(scene.count(kind, colour) > 0) for kind in KINDS for colour in COLOURS),
        *(int(scene.count(kind) >= n) for kind in KINDS for n in range(1, _MAX_COUNTED + 1)),
        *(int(len(scene.things) == n) for n in range(1, MAX_THINGS + 1)),
    ]


def scene_pool(
    stream: str, count: int, *, tokenizer: Any, reporter: Reporter, seed: int = 0
) -> ImagePool:
    """Return `count` scenes with five short captions and three listings of everything each.

    Pools of different `STREAMS` share no image; `seed` changes every image.
    """
    images: list[Image] = []
    sentences: list[tuple[tuple[int, ...], ...]] = []
    labels: list[list[int]] = []
    excluded = _suite_pictures(SceneSizes())
    skipped = 0
    with reporter.phase(f"drawing {stream} scenes", count, "images") as phase:
        for scene, rng in _stream(stream, seed):
            if len(images) == count:
                break
            image = render(scene)
            if _digest(image) in excluded:
                skipped += 1
                continue
            images.append(image)
            texts = (*captions(scene, rng), *(describe(scene, rng) for _ in range(_LISTINGS)))
            sentences.append(
                tuple(caption_ids(tokenizer, text, length=CAPTION_TOKENS) for text in texts)
            )
            labels.append(scene_labels(scene))
            phase.advance()
    return ImagePool(
        images=stack_images(images),
        captions=tuple(sentences),
        labels=torch.tensor(labels, dtype=torch.float32),
        classes=class_names(),
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


def _stream(stream: str, seed: int) -> Iterator[tuple[Scene, np.random.Generator]]:
    root = np.random.SeedSequence([STREAMS[stream], seed])
    while True:
        for child in root.spawn(256):
            rng = np.random.default_rng(child)
            yield sample_scene(rng), rng


@cache
def _suite_pictures(sizes: SceneSizes) -> frozenset[str]:
    """Return the digests of the suite's own validation and test pictures, drawn again."""
    return frozenset(
        _digest(render(scene))
        for split in _SUITE_SPLITS
        for scene in _first(scene_stream(sizes.seed, split), getattr(sizes, split))
    )


def _first(stream: Iterable[tuple[Scene, Any]], count: int) -> Iterator[Scene]:
    return (scene for scene, _ in islice(stream, count))


def _digest(image: Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
