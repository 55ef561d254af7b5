"""Scenes: things with kind, colour, size and place, sampled under fair rules, and their picture."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

KINDS = ("circle", "square", "triangle", "star", "cross", "ring")
RGB = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (40, 80, 210),
    "yellow": (245, 215, 50),
    "purple": (140, 60, 170),
    "white": (250, 250, 250),
}
COLOURS = tuple(RGB)
SIZES = ("small", "large")
BACKGROUNDS = ("plain", "striped", "speckled", "shaded")
CANVAS = 64
_SCALE = 4
"""Pictures are drawn so many times larger, then reduced, so that edges are smooth."""
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
        size = str(rng.choice(SIZES))
        radius = float(rng.uniform(*RADIUS[size]))
        middle = (rng.integers(CELLS, size=2) + 0.5) * (CANVAS / CELLS)
        centre = middle + rng.uniform(-JITTER, JITTER, size=2)
        x, y = (float(v) for v in np.clip(centre, radius, CANVAS - radius))
        colour, angle = str(rng.choice(COLOURS)), float(rng.uniform(-0.25, 0.25))
        thing = Thing(kind, colour, size, x, y, radius, angle)
        if all(_apart(thing, other) for other in things):
            things.append(thing)
    return Scene(str(rng.choice(BACKGROUNDS)), int(rng.integers(2**31)), tuple(things))


def _apart(a: Thing, b: Thing) -> bool:
    """Allow a rim of overlap, at most a quarter of the smaller thing's width."""
    distance = math.hypot(a.x - b.x, a.y - b.y)
    return distance >= a.radius + b.radius - 0.5 * min(a.radius, b.radius)


def render(scene: Scene) -> Image.Image:
    """Return the scene as a 64 by 64 RGB image; the same scene gives the same pixels."""
    canvas = _background(scene)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        _draw_thing(draw, thing)
    return canvas.resize((CANVAS, CANVAS), Image.Resampling.LANCZOS)


def _background(scene: Scene) -> Image.Image:
    rng = np.random.default_rng(scene.background_seed)
    base = rng.uniform(95, 165, size=3) * 0.3 + rng.uniform(110, 160) * 0.7
    angle = rng.uniform(0, math.pi)
    if scene.background == "speckled":
        field = rng.normal(0, 9, (CANVAS, CANVAS)).repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
    else:
        xs, ys = _unit_grid()
        along = xs * math.cos(angle) + ys * math.sin(angle)
        if scene.background == "striped":
            field = 9 * np.sign(np.sin(along * rng.uniform(25, 60)))
        else:
            field = (50 if scene.background == "shaded" else 0) * (along - along.mean())
    bands = [np.clip(field + level, 0, 255).astype(np.uint8) for level in base]
    return Image.merge("RGB", [Image.fromarray(band) for band in bands])


@functools.cache
def _unit_grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ys, xs = np.mgrid[0 : CANVAS * _SCALE, 0 : CANVAS * _SCALE] / (CANVAS * _SCALE)
    return xs, ys


_ARM = 0.32
_OUTLINES = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)],
    "cross": [
        *((_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM), (_ARM, 1.0)),
        *((-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM), (-_ARM, -1.0)),
    ],
    "star": [
        (r * math.cos(math.pi * (i / 5 - 0.5)), r * math.sin(math.pi * (i / 5 - 0.5)))
        for i, r in enumerate([1.0, 0.42] * 5)
    ],
}
"""Corners in units of the radius, y pointing down."""


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing) -> None:
    colour = RGB[thing.colour]
    edge = tuple(int(channel * 0.55) for channel in colour)
    cx, cy, r = (v * _SCALE for v in (thing.x, thing.y, thing.radius))
    if thing.kind in _OUTLINES:
        cos, sin = math.cos(thing.angle), math.sin(thing.angle)
        points = [
            (cx + r * (x * cos - y * sin), cy + r * (x * sin + y * cos))
            for x, y in _OUTLINES[thing.kind]
        ]
        draw.polygon(points, fill=colour, outline=edge, width=_SCALE)
    else:
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour, outline=edge, width=_SCALE)
    if thing.kind == "ring":
        hole = r * 0.5
        draw.ellipse((cx - hole, cy - hole, cx + hole, cy + hole), fill=(128, 128, 128))
