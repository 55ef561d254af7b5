"""Hand-made SVG that follows the page's light or dark theme: scales, marks, text.

What belongs here: shapes and their escaping. Colours are CSS classes of `style.css`, so that one
drawing serves both themes and paper. What is drawn is the business of `charts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SERIES = 8
"""Classes `s0` to `s7` colour series; their marks differ too, so that colour is not needed."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from data (`low` to `high`) to pixels (`start` to `end`)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """Return about `count` round values within the scale."""
        return nice_ticks(self.low, self.high, count)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten within the bounds.

    >>> nice_ticks(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = min((s * power for s in (1, 2, 5, 10)), key=lambda s: abs(span / s - count))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step + 0.0 for index in range(first, last + 1)]


def spread(values: Sequence[float], *, pad: float = 0.08) -> tuple[float, float]:
    """Return bounds that hold all values with a margin, never of zero width."""
    low, high = min(values), max(values)
    margin = (high - low) * pad or max(abs(high) * pad, 1.0)
    return low - margin, high + margin


def keep_apart(positions: Sequence[float], gap: float, *, lowest: float = math.inf) -> list[float]:
    """Return positions moved down, then up, so that none are closer than `gap`.

    Clusters stay centred where they were, unless they would pass below `lowest` (the largest
    pixel allowed), in which case all move up.

    >>> keep_apart([10.0, 11.0, 30.0], 5.0)
    [8.0, 13.0, 30.0]
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    clusters: list[tuple[float, int]] = []  # (centre, members), from the top
    for i in order:
        centre, members = positions[i], 1
        while clusters and centre - clusters[-1][0] < gap * (members + clusters[-1][1]) / 2:
            above, count = clusters.pop()
            centre = (above * count + centre * members) / (count + members)
            members += count
        clusters.append((centre, members))
    placed = [
        centre + gap * (n - (members - 1) / 2)
        for centre, members in clusters
        for n in range(members)
    ]
    floor = lowest
    for n in reversed(range(len(placed))):
        placed[n] = min(placed[n], floor)
        floor = placed[n] - gap
    result = [0.0] * len(positions)
    for place, i in zip(placed, order, strict=True):
        result[i] = place
    return result


def text(x: float, y: float, content: str, *, anchor: str = "start", css: str = "") -> str:
    """Return a `<text>` with escaped content."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{_css(css)}>{escape(content)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, *, css: str = "") -> str:
    """Return a straight `<line>`."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{_css(css)}/>'


def polyline(points: Sequence[tuple[float, float]], *, css: str = "") -> str:
    """Return an open `<polyline>`."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none"{_css(css)}/>'


def whisker(x1: float, y1: float, x2: float, y2: float, series: int) -> str:
    """Return an interval's line in its series' colour."""
    return line(x1, y1, x2, y2, css=f"s{series % SERIES} whisker")


def mark(x: float, y: float, series: int, title: str, *, hollow: bool = False) -> str:
    """Return a series' mark (circle, square, diamond, triangle) with a tooltip."""
    css = f"s{series % SERIES} mark" + (" hollow" if hollow else "")
    r = 4.5
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>',
        f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"/>',
        f'<path d="M{x:.1f} {y - 6:.1f}l6 6-6 6-6-6z"/>',
        f'<path d="M{x:.1f} {y - 5.5:.1f}l5.5 10h-11z"/>',
    )
    shape = shapes[(series + series // SERIES) % len(shapes)]  # 32 pairs before one repeats
    return f"<g{_css(css)}><title>{escape(title)}</title>{shape}</g>"


def figure(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """Return an `<svg>` that scales with the page and tells screen readers what it shows."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}</svg>"
    )


def _css(names: str) -> str:
    return f' class="{names}"' if names else ""
