"""The report's charts, as SVG: slope, intervals, Pareto, curves, breakdowns.

What belongs here: what each chart shows and where. Numbers come ready from `content.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from encoder_bench.results.report import svg
from encoder_bench.results.report.svg import Scale


@dataclass(frozen=True, slots=True)
class Point:
    """A value with the half-width of its 95% interval, where it has one."""

    value: float
    half_width: float | None = None

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.value - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.value + (self.half_width or 0.0)

    def __str__(self) -> str:
        """Return `50.0 ±2.0`."""
        return f"{self.value:.1f}" + ("" if self.half_width is None else f" ±{self.half_width:.1f}")


@dataclass(frozen=True, slots=True)
class Series:
    """One encoder's scores in one column, frozen and joint; `index` fixes colour and mark."""

    label: str
    index: int
    frozen: Point | None
    joint: Point | None

    def points(self) -> list[Point]:
        """Return what there is of the two."""
        return [point for point in (self.frozen, self.joint) if point is not None]


def slope_chart(title: str, series: Sequence[Series]) -> str | None:
    """Return frozen on the left, joint on the right, a line an encoder; None without a pair."""
    if not any(each.frozen and each.joint for each in series):
        return None
    ends = [end for each in series for point in each.points() for end in (point.low, point.high)]
    width, height = 340, 250
    left, right = 58.0, 200.0
    y = Scale(*svg.spread(ends), height - 34, 30)
    parts = [svg.text(8, 16, title, css="title")]
    for tick in y.ticks():
        parts.append(svg.line(left - 15, y(tick), right + 14, y(tick), css="grid"))
        parts.append(svg.text(left - 20, y(tick) + 4, f"{tick:g}", anchor="end", css="axis"))
    for x, name in ((left, "frozen"), (right, "joint")):
        parts.append(svg.text(x, height - 12, name, anchor="middle", css="axis"))
    apart = min(4.0, 16.0 / len(series))
    for number, each in enumerate(series):
        aside = apart * (number - (len(series) - 1) / 2)
        parts += _slope(each, left + aside, right + aside, y)
    last = [(each, each.joint or each.frozen) for each in series]
    labelled = [(each, point) for each, point in last if point is not None]
    places = svg.keep_apart([y(p.value) for _, p in labelled], 14.0, lowest=height - 30)
    for (each, point), place in zip(labelled, places, strict=True):
        parts.append(svg.line(right + 14, y(point.value), right + 22, place, css="leader"))
        parts.append(svg.text(right + 25, place + 4, _short(each.label), css="label"))
    return svg.figure(width, height, f"{title}, frozen against joint", parts)


def _slope(each: Series, left: float, right: float, y: Scale) -> list[str]:
    parts = []
    if each.frozen and each.joint:
        ends = [(left, y(each.frozen.value)), (right, y(each.joint.value))]
        parts.append(svg.polyline(ends, css=f"s{each.index % svg.SERIES} curve"))
    for x, point, mode in ((left, each.frozen, "frozen"), (right, each.joint, "joint")):
        if point is not None:
            parts.append(svg.whisker(x, y(point.low), x, y(point.high), each.index))
            parts.append(svg.mark(x, y(point.value), each.index, f"{each.label}, {mode}: {point}"))
    return parts


def interval_chart(title: str, series: Sequence[Series], blind: float | None) -> str | None:
    """Return a dot with its interval for each encoder and mode, and where the blind score lies."""
    rows = [
        (each, point, mode)
        for each in series
        for mode, point in (("frozen", each.frozen), ("joint", each.joint))
        if point is not None
    ]
    if not rows:
        return None
    ends = [end for _, point, _ in rows for end in (point.low, point.high)]
    step, top, left, width = 19.0, 34.0, 178.0, 488.0
    height = top + step * len(rows) + 26
    x = Scale(*svg.spread([*ends, *([blind] if blind is not None else [])]), left, width - 12)
    parts = [svg.text(8, 16, title, css="title")]
    for tick in x.ticks(5):
        parts.append(svg.line(x(tick), top - 8, x(tick), height - 22, css="grid"))
        parts.append(svg.text(x(tick), height - 8, f"{tick:g}", anchor="middle", css="axis"))
    if blind is not None:
        parts.append(svg.line(x(blind), top - 12, x(blind), height - 22, css="blind"))
        parts.append(svg.text(x(blind), top - 14, "best blind", anchor="middle", css="axis"))
    for index, (each, point, mode) in enumerate(rows):
        y = top + step * index + 6
        parts.append(
            svg.text(left - 10, y + 4, f"{_short(each.label)}, {mode}", anchor="end", css="label")
        )
        parts.append(svg.whisker(x(point.low), y, x(point.high), y, each.index))
        hollow = mode == "frozen"
        parts.append(
            svg.mark(x(point.value), y, each.index, f"{each.label}, {mode}: {point}", hollow=hollow)
        )
    return svg.figure(width, height, f"{title} with 95% intervals", parts)


@dataclass(frozen=True, slots=True)
class Costed:
    """One row's score against what it cost."""

    label: str
    index: int
    joint: bool
    cost: float
    score: Point


def pareto_chart(title: str, axis: str, points: Sequence[Costed]) -> str | None:
    """Return score against cost with the frontier (nothing cheaper is better) drawn through."""
    if len(points) < 2:
        return None
    width, height, left, bottom = 590, 330, 52.0, 44.0
    x = Scale(*svg.spread([each.cost for each in points]), left, width - 130)
    ends = [end for each in points for end in (each.score.low, each.score.high)]
    y = Scale(*svg.spread(ends), height - bottom, 30)
    parts = [svg.text(8, 16, title, css="title"), *_axes(x, y, width - 130, height - bottom)]
    parts.append(svg.text((left + width - 130) / 2, height - 8, axis, anchor="middle", css="axis"))
    frontier = _frontier(points)
    parts.append(
        svg.polyline([(x(each.cost), y(each.score.value)) for each in frontier], css="frontier")
    )
    for each in points:
        at = x(each.cost), y(each.score.value)
        mode = "joint" if each.joint else "frozen"
        note = f"{each.label}, {mode}: {each.score} at {each.cost:,.4g} {axis}"
        low, high = y(each.score.low), y(each.score.high)
        parts.append(svg.whisker(at[0], low, at[0], high, each.index))
        parts.append(svg.mark(*at, each.index, note, hollow=not each.joint))
    places = svg.keep_apart([y(e.score.value) for e in points], 13.0, lowest=height - bottom)
    for each, place in zip(points, places, strict=True):
        mode = "joint" if each.joint else "frozen"
        name = f"{_short(each.label)}, {mode}"
        parts.append(
            svg.line(x(each.cost) + 7, y(each.score.value), width - 124, place, css="leader")
        )
        parts.append(svg.text(width - 121, place + 4, name, css="label"))
    return svg.figure(width, height, title, parts)


def _frontier(points: Sequence[Costed]) -> list[Costed]:
    best: list[Costed] = []
    for each in sorted(points, key=lambda each: (each.cost, -each.score.value)):
        if not best or each.score.value > best[-1].score.value:
            best.append(each)
    return best


def curve_chart(
    title: str, curves: Mapping[str, tuple[int, Sequence[tuple[float, float]]]]
) -> str | None:
    """Return lines over training steps: label -> (series, [(step, loss), ...])."""
    points = [point for _, curve in curves.values() for point in curve]
    if len(points) < 2:
        return None
    width, height, left, bottom = 620, 280, 52.0, 44.0
    x = Scale(0, max(step for step, _ in points), left, width - 140)
    y = Scale(*svg.spread([loss for _, loss in points]), height - bottom, 30)
    parts = [svg.text(8, 16, title, css="title"), *_axes(x, y, width - 140, height - bottom)]
    parts.append(
        svg.text((left + width - 140) / 2, height - 8, "step", anchor="middle", css="axis")
    )
    drawn = [(label, index, curve) for label, (index, curve) in curves.items() if curve]
    for label, index, curve in drawn:
        css = f"s{index % svg.SERIES} curve" + (" dashed" if label.endswith("frozen") else "")
        parts.append(svg.polyline([(x(step), y(loss)) for step, loss in _thinned(curve)], css=css))
    places = svg.keep_apart([y(c[-1][1]) for _, _, c in drawn], 13.0, lowest=height - 8)
    for (label, _, curve), place in zip(drawn, places, strict=True):
        parts.append(svg.line(x(curve[-1][0]), y(curve[-1][1]), width - 134, place, css="leader"))
        parts.append(svg.text(width - 131, place + 4, label, css="label"))
    return svg.figure(width, height, title, parts)


def bar_chart(
    title: str, categories: Sequence[str], values: Mapping[str, tuple[int, Sequence[Point | None]]]
) -> str | None:
    """Return a score by category: label -> (series, a point a category), a mark and interval."""
    points = [point for _, row in values.values() for point in row if point is not None]
    if not points or not categories:
        return None
    left, bottom, height = 52.0, 62.0, 270
    longest = max((len(category) for category in categories), default=1)
    room = max(46.0, 13.0 * len(values) + 14, min(6.2 * longest + 8, 110.0))
    width = left + room * len(categories) + 160
    y = Scale(*svg.spread([end for p in points for end in (p.low, p.high)]), height - bottom, 30)
    right = width - 150
    parts = [svg.text(8, 16, title, css="title")]
    parts += [svg.line(left, y(tick), right, y(tick), css="grid") for tick in y.ticks()]
    parts += [
        svg.text(left - 6, y(tick) + 4, f"{tick:g}", anchor="end", css="axis") for tick in y.ticks()
    ]
    for column, category in enumerate(categories):
        middle = left + room * (column + 0.5)
        parts.append(
            svg.text(
                middle,
                height - bottom + 18,
                _short(category, max(4, int(room / 6.2))),
                anchor="middle",
                css="axis",
            )
        )
        for place, (label, (index, row)) in enumerate(values.items()):
            point = row[column]
            if point is None:
                continue
            x = middle + 13.0 * (place - (len(values) - 1) / 2)
            parts.append(svg.whisker(x, y(point.low), x, y(point.high), index))
            hollow = label.endswith("frozen")
            note = f"{label}, {category}: {point}"
            parts.append(svg.mark(x, y(point.value), index, note, hollow=hollow))
    for place, (label, (index, _)) in enumerate(values.items()):
        y_key = 40.0 + 17 * place
        parts.append(svg.mark(right + 14, y_key, index, label, hollow=label.endswith("frozen")))
        parts.append(svg.text(right + 24, y_key + 4, _short(label, 20), css="label"))
    return svg.figure(width, max(height, 60 + 17 * len(values)), title, parts)


def _axes(x: Scale, y: Scale, right: float, bottom: float) -> list[str]:
    parts = []
    for tick in y.ticks():
        parts.append(svg.line(x.start, y(tick), right, y(tick), css="grid"))
        parts.append(svg.text(x.start - 6, y(tick) + 4, f"{tick:g}", anchor="end", css="axis"))
    return parts + [
        svg.text(x(tick), bottom + 16, f"{tick:,g}", anchor="middle", css="axis")
        for tick in x.ticks(5)
    ]


def _thinned(curve: Sequence[tuple[float, float]], limit: int = 400) -> list[tuple[float, float]]:
    """Keep every k-th point and the last, so that a long curve stays small on the page."""
    stride = max(1, len(curve) // limit)
    kept = list(curve[::stride])
    return kept if kept[-1] == curve[-1] else [*kept, curve[-1]]


def _short(label: str, limit: int = 19) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"
