"""What is in a scene: things with kind, colour, size and place, sampled under fair rules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

KINDS = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SIZES = ("small", "large")
BACKGROUNDS = ("plain", "striped", "speckled", "shaded")
CANVAS = 64
MAX_THINGS = 6
RADIUS = {"small": (6.0, 7.0), "large": (8.5, 9.5)}
CELLS, JITTER = 4, 2.0
"""Things stand near the middles of a 4 by 4 grid of cells, at most so many pixels off it each way
(large ones at the rim are moved inwards): neighbours may overlap, and one cell holds one thing."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: its names, and its centre and radius in pixels of a 64 by 64 canvas."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def place(self) -> str:
        """The cell of a three by three grid in which the centre lies, in words."""
        column = ("left", "middle", "right")[min(2, int(self.x / CANVAS * 3))]
        row = ("top", "middle", "bottom")[min(2, int(self.y / CANVAS * 3))]
        if row == column:
            return "center"
        return row if column == "middle" else column if row == "middle" else f"{row} {column}"


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and the things on it, in drawing order (later ones lie on top)."""

    background: str
    background_seed: int
    things: tuple[Thing, ...]

    def count(self, kind: str | None = None, colour: str | None = None) -> int:
        """Return how many things are of the kind and colour; None matches any."""
        return sum(
            (kind is None or thing.kind == kind) and (colour is None or thing.colour == colour)
            for thing in self.things
        )


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene of 1 to 6 things, none hidden by more than a small part.

    Kinds repeat often enough that counts above one are common: each scene favours a few kinds.
    """
    number = int(rng.integers(1, MAX_THINGS + 1))
    favoured = rng.choice(KINDS, size=int(rng.integers(1, 4)), replace=False)
    things: list[Thing] = []
    for _ in range(number * 40):
        if len(things) == number:
            break
        kind = str(rng.choice(favoured) if rng.random() < 0.7 else rng.choice(KINDS))
        thing = _sample_thing(kind, rng)
        if all(_apart(thing, other) for other in things):
            things.append(thing)
    return Scene(str(rng.choice(BACKGROUNDS)), int(rng.integers(2**31)), tuple(things))


def _sample_thing(kind: str, rng: np.random.Generator) -> Thing:
    size = str(rng.choice(SIZES))
    radius = float(rng.uniform(*RADIUS[size]))
    side = CANVAS / CELLS
    middle = (rng.integers(CELLS, size=2) + 0.5) * side
    centre = middle + rng.uniform(-JITTER, JITTER, size=2)
    x, y = (float(v) for v in np.clip(centre, radius, CANVAS - radius))
    return Thing(
        kind, str(rng.choice(COLOURS)), size, x, y, radius, float(rng.uniform(-0.25, 0.25))
    )


def _apart(a: Thing, b: Thing) -> bool:
    """Allow a rim of overlap, at most a quarter of the smaller thing's width."""
    distance = math.hypot(a.x - b.x, a.y - b.y)
    return distance >= a.radius + b.radius - 0.5 * min(a.radius, b.radius)
