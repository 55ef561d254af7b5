"""Scenes: things with kind, colour, size and place, sampled under fair rules, and their picture.

A thing spans several patches of an encoder and is rotated, tilted, lit and perhaps partly hidden;
kinds share their parts and colours, and pieces of both lie about, so that no patch alone tells what
is there. Arithmetic is of integers, float64 or single elementwise steps, so that pictures do not
depend on the machine.
"""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

KINDS = ("circle", "ring", "square", "frame", "star", "cross")
RGB = {
    "red": (205, 45, 45),
    "green": (50, 155, 65),
    "blue": (50, 85, 205),
    "yellow": (235, 205, 60),
    "purple": (140, 65, 175),
    "white": (238, 238, 238),
}
COLOURS = tuple(RGB)
SIZES = ("small", "large")
BACKGROUNDS = ("plain", "grainy", "striped", "checked")
CANVAS = 72
MAX_THINGS = 5
RADIUS = {"small": (9.5, 11.5), "large": (14.0, 26.0)}
"""Pixels. The largest shrink as a scene fills: `_ROOM` over the root of the number of things."""
_ROOM = 30.0
MAX_HIDDEN, MIN_HIDDEN = 0.4, 0.08
"""A thing is whole, or later ones hide from 8% to 40% of it."""
_SCALE = 3
"""Masks are drawn so many times larger, then reduced, so that edges are smooth."""

Pixels = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: its names, centre and radius in pixels, rotation, tilt and what is hidden of it.

    `tilt` is the ratio of its short to its long axis, the short one lying along `tilt_angle`.
    """

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float = 0.0
    tilt: float = 1.0
    tilt_angle: float = 0.0
    hidden: float = 0.0

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
    seed: int
    things: tuple[Thing, ...]

    def count(self, kind: str | None = None, colour: str | None = None) -> int:
        """Return how many things are of the kind and colour; None matches any."""
        return sum(
            (kind is None or thing.kind == kind) and (colour is None or thing.colour == colour)
            for thing in self.things
        )


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene of 1 to 5 things, each whole or hidden by less than half.

    Kinds repeat often enough that counts above one are common: as in photographs, what is together
    is often of a kind, so each scene favours one or two.
    """
    number = int(rng.integers(1, MAX_THINGS + 1))
    favoured = rng.choice(KINDS, size=int(rng.integers(1, 3)), replace=False)
    things: list[Thing] = []
    seen: list[NDArray[np.bool_]] = []
    areas: list[int] = []
    for _ in range(number * 30):
        if len(things) == number:
            break
        thing = _sample_thing(rng, favoured, number)
        if any(
            math.hypot(thing.x - other.x, thing.y - other.y)
            < 0.75 * max(thing.radius, other.radius)
            for other in things
        ):
            continue
        over = covered(thing)
        left = [int((mask & ~over).sum()) for mask in seen]
        hides = [1 - now / area for now, area in zip(left, areas, strict=True)]
        if all(
            h == t.hidden or MIN_HIDDEN < h < MAX_HIDDEN for h, t in zip(hides, things, strict=True)
        ):
            things = [replace(t, hidden=h) for t, h in zip(things, hides, strict=True)] + [thing]
            seen = [mask & ~over for mask in seen] + [over]
            areas.append(int(over.sum()))
    return Scene(str(rng.choice(BACKGROUNDS)), int(rng.integers(2**31)), tuple(things))


def _sample_thing(rng: np.random.Generator, favoured: NDArray[np.str_], number: int) -> Thing:
    kind = str(rng.choice(favoured) if rng.random() < 0.75 else rng.choice(KINDS))
    size = str(rng.choice(SIZES))
    low, high = RADIUS[size]
    radius = float(rng.uniform(low, min(high, max(low + 1, _ROOM / math.sqrt(number)))))
    x, y = (float(v) for v in rng.uniform(0.85 * radius, CANVAS - 0.85 * radius, size=2))
    angle, tilt_angle = (float(v) for v in rng.uniform(0, 2 * math.pi, size=2))
    tilt = float(rng.uniform(0.7, 1.0))
    return Thing(kind, str(rng.choice(COLOURS)), size, x, y, radius, angle, tilt, tilt_angle)


def render(scene: Scene) -> Image.Image:
    """Return the scene as a 72 by 72 RGB image; the same scene gives the same pixels."""
    rng = np.random.default_rng(scene.seed)
    light = float(rng.uniform(0, 2 * math.pi))
    pixels = _with_pieces(_background(scene.background, rng), rng)
    shading = float(rng.uniform(0, 0.35))
    for thing in scene.things:
        pixels = _with_thing(pixels, thing, light, shading, rng)
    return _photographed(pixels, light, rng)


def _field(rng: np.random.Generator, side: int) -> Pixels:
    """Return smooth noise of -0.5 to 0.5, `side` random values across the canvas."""
    noise = Image.fromarray(rng.integers(0, 256, (side, side), dtype=np.uint8))
    return np.asarray(noise.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)) / 255.0 - 0.5


def _colour(rng: np.random.Generator) -> Pixels:
    return np.array(RGB[str(rng.choice(COLOURS))], dtype=np.float64)


def _along(angle: float) -> Pixels:
    """Return how far each pixel lies in a direction, the canvas -1 to 1 across."""
    ys, xs = _grid()
    along: Pixels = xs * math.cos(angle) + ys * math.sin(angle)
    return along


@functools.cache
def _grid() -> tuple[Pixels, Pixels]:
    ys, xs = (np.mgrid[0:CANVAS, 0:CANVAS] + 0.5) / (CANVAS / 2) - 1.0
    return ys, xs


def _background(name: str, rng: np.random.Generator) -> Pixels:
    """Return two of the things' own colours, greyed, that meet in blotches under a texture."""
    share = np.clip(_field(rng, int(rng.integers(2, 6))) * rng.uniform(1, 5) + 0.5, 0, 1)
    angle, width = float(rng.uniform(0, math.pi)), float(rng.uniform(8, 30))
    if name == "striped":
        texture = 0.4 * np.sin(_along(angle) * width + rng.uniform(0, 5) * _field(rng, 4))
    elif name == "checked":
        across = np.sin(_along(angle) * width / 2) * np.sin(_along(angle + math.pi / 2) * width / 2)
        texture = 0.4 * np.sign(across)
    elif name == "grainy":
        texture = 0.5 * _field(rng, CANVAS // 2) + 0.3 * _field(rng, CANVAS // 6)
    else:
        texture = np.zeros((CANVAS, CANVAS))
    one, other = (0.4 * _colour(rng) + 0.6 * rng.uniform(60, 180) for _ in range(2))
    mixed = one * (1 - share[..., None]) + other * share[..., None]
    return mixed + texture[..., None] * rng.uniform(10, 40)


def _with_pieces(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Return the picture with up to six small pieces of arcs and corners strewn over it."""
    size = (CANVAS * _SCALE, CANVAS * _SCALE)
    mask, colours = Image.new("L", size), Image.new("RGB", size)
    for _ in range(int(rng.integers(7))):
        x, y = rng.uniform(0, size[0], size=2)
        colour = tuple(int(v) for v in _colour(rng) * rng.uniform(0.7, 1.1))
        reach, start = rng.uniform(4, 10) * _SCALE / 2, rng.uniform(0, 360)
        corners = [(x + dx, y + dy) for dx, dy in rng.uniform(-reach, reach, size=(4, 2))]
        box, arc = (x - reach, y - reach, x + reach, y + reach), rng.random() < 0.5
        for image, fill in ((mask, 255), (colours, colour)):
            draw = ImageDraw.Draw(image)
            if arc:
                draw.arc(box, start, start + 110, fill=fill, width=3 * _SCALE)
            else:
                draw.polygon(corners, fill=fill)
    alpha = np.asarray(mask.reduce(_SCALE))[..., None] / 255.0
    mixed: Pixels = pixels * (1 - alpha) + np.asarray(colours.reduce(_SCALE))
    return mixed


_BLUR_REACH = 8


def _with_thing(
    pixels: Pixels, thing: Thing, light: float, shading: float, rng: np.random.Generator
) -> Pixels:
    """Return the picture with a thing's shadow and the thing on it, shaded from the light on."""
    mask = _mask(thing, _SCALE).reduce(_SCALE)
    box = _around(mask)
    here = (slice(box[1], box[3]), slice(box[0], box[2]))
    shadow = np.zeros((CANVAS, CANVAS))
    shadow[here] = np.asarray(mask.crop(box).filter(ImageFilter.GaussianBlur(1.5))) / 255.0
    steps = (round(2 * math.sin(light)), round(2 * math.cos(light)))
    pixels = pixels * (1 - 0.45 * np.roll(shadow, steps, (0, 1)))[..., None]
    x, y = 2 * thing.x / CANVAS - 1, 2 * thing.y / CANVAS - 1
    middle = x * math.cos(light) + y * math.sin(light)
    shade = 1 - shading * (_along(light)[here] - middle) * (CANVAS / 2 / thing.radius)
    colour = np.array(RGB[thing.colour]) * rng.uniform(0.85, 1.08) + rng.uniform(-12, 12, size=3)
    surface = colour * shade[..., None] + (_field(rng, 24) * rng.uniform(5, 35))[here][..., None]
    alpha = np.asarray(mask)[here][..., None] / 255.0
    pixels[here] = pixels[here] * (1 - alpha) + surface * alpha
    return pixels


def _around(mask: Image.Image) -> tuple[int, int, int, int]:
    """Return the box of a mask and of what its blur reaches: nothing is drawn outside."""
    left, top, right, bottom = mask.getbbox() or (0, 0, CANVAS, CANVAS)
    return (
        max(0, left - _BLUR_REACH), max(0, top - _BLUR_REACH),
        min(CANVAS, right + _BLUR_REACH), min(CANVAS, bottom + _BLUR_REACH),
    )  # fmt: skip


def _photographed(pixels: Pixels, light: float, rng: np.random.Generator) -> Image.Image:
    """Return the picture under falling light, with its own contrast, exposure, noise and blur."""
    pixels = pixels * (1 - rng.uniform(0, 0.35) * _along(light))[..., None]
    pixels = (pixels - 128) * rng.uniform(0.75, 1.1) + 128 * rng.uniform(0.85, 1.15)
    grain = rng.integers(-100, 101, (CANVAS, CANVAS, 1)) / 100
    pixels = pixels + grain * rng.uniform(0, 8)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1))))


def _regular(points: int, *radii: float) -> list[tuple[float, float]]:
    steps = [
        (math.pi * i * 2 / (points * len(radii)), radii[i % len(radii)])
        for i in range(points * len(radii))
    ]
    return [(r * math.sin(a), -r * math.cos(a)) for a, r in steps]


_ARM = 0.34
_HALF_CROSS = (
    (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM), (_ARM, 1.0),
)  # fmt: skip
_DISC, _BLOCK = _regular(36, 0.95), _regular(4, 1.16)
_OUTLINES = {
    "circle": (_DISC,),
    "ring": (_DISC, [(0.52 * x, 0.52 * y) for x, y in _DISC]),
    "square": (_BLOCK,),
    "frame": (_BLOCK, [(0.55 * x, 0.55 * y) for x, y in _BLOCK]),
    "star": (_regular(5, 1.1, 0.5),),
    "cross": ([*_HALF_CROSS, *((-x, -y) for x, y in _HALF_CROSS)],),
}
"""Outline and, where there is one, hole; corners in units of the radius."""


def covered(thing: Thing) -> NDArray[np.bool_]:
    """Return which pixels of the canvas a thing covers, whatever lies on it."""
    return np.asarray(_mask(thing, 1)) > 0


def _mask(thing: Thing, scale: int) -> Image.Image:
    """Return what a thing covers of a canvas `scale` times as large, 255 where it does."""
    mask = Image.new("L", (CANVAS * scale, CANVAS * scale))
    draw = ImageDraw.Draw(mask)
    for outline, fill in zip(_OUTLINES[thing.kind], (255, 0), strict=False):
        draw.polygon([_placed(x, y, thing, scale) for x, y in outline], fill=fill)
    return mask


def _placed(x: float, y: float, thing: Thing, scale: int) -> tuple[float, float]:
    cos, sin = math.cos(thing.angle - thing.tilt_angle), math.sin(thing.angle - thing.tilt_angle)
    x, y = (x * cos - y * sin) * thing.tilt, x * sin + y * cos
    cos, sin = math.cos(thing.tilt_angle), math.sin(thing.tilt_angle)
    x, y = x * cos - y * sin, x * sin + y * cos
    return (thing.x + thing.radius * x) * scale, (thing.y + thing.radius * y) * scale
