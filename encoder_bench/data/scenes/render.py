"""Drawing a scene as a 64 by 64 picture: four times larger, then reduced, so edges are smooth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from encoder_bench.data.scenes.graph import CANVAS, Scene, Thing

RGB = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (40, 80, 210),
    "yellow": (245, 215, 50),
    "purple": (140, 60, 170),
    "white": (250, 250, 250),
}
_SCALE = 4


def render(scene: Scene) -> Image.Image:
    """Return the scene as a 64 by 64 RGB image; the same scene gives the same pixels."""
    canvas = _background(scene)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        _draw_thing(draw, thing)
    return canvas.resize((CANVAS, CANVAS), Image.Resampling.LANCZOS)


def _background(scene: Scene) -> Image.Image:
    rng = np.random.default_rng(scene.background_seed)
    size = CANVAS * _SCALE
    base = rng.uniform(95, 165, size=3) * 0.3 + rng.uniform(110, 160) * 0.7
    field: NDArray[Any] = np.zeros((size, size))
    ys, xs = np.mgrid[0:size, 0:size] / size
    angle = rng.uniform(0, math.pi)
    along = xs * math.cos(angle) + ys * math.sin(angle)
    if scene.background == "striped":
        field = np.asarray(9 * np.sign(np.sin(along * rng.uniform(25, 60))), dtype=np.float64)
    elif scene.background == "speckled":
        field = np.kron(rng.normal(0, 9, (CANVAS, CANVAS)), np.ones((_SCALE, _SCALE)))
    elif scene.background == "shaded":
        field = 50 * (along - along.mean())
    pixels = np.clip(base[None, None] + field[..., None], 0, 255).astype(np.uint8)
    return Image.fromarray(pixels, "RGB")


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing) -> None:
    colour = RGB[thing.colour]
    edge = tuple(int(channel * 0.55) for channel in colour)
    cx, cy, r = (v * _SCALE for v in (thing.x, thing.y, thing.radius))
    if thing.kind in ("circle", "ring"):
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour, outline=edge, width=_SCALE)
        if thing.kind == "ring":
            hole = r * 0.5
            draw.ellipse((cx - hole, cy - hole, cx + hole, cy + hole), fill=(128, 128, 128))
        return
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    points = [
        (cx + r * (x * cos - y * sin), cy + r * (x * sin + y * cos))
        for x, y in _outline(thing.kind)
    ]
    draw.polygon(points, fill=colour, outline=edge, width=_SCALE)


def _outline(kind: str) -> list[tuple[float, float]]:
    """Return a kind's outline in units of its radius, y pointing down."""
    if kind == "square":
        side = 0.85
        return [(-side, -side), (side, -side), (side, side), (-side, side)]
    if kind == "triangle":
        return [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)]
    if kind == "cross":
        arm = 0.32
        corner = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
        turns = [corner]
        for _ in range(3):
            turns.append([(-y, x) for x, y in turns[-1]])
        return [point for turn in turns for point in turn]
    if kind == "star":
        radii = [1.0, 0.42] * 5
        angles = [math.pi * (index / 5 - 0.5) for index in range(10)]
        return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    raise AssertionError(kind)
