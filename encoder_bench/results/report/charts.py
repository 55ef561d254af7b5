"""The report's charts in Vega-Lite: one definition each for the page and for files."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import numpy as np

from encoder_bench.base.record import MODES

SERIES = 8
"""Colours; shapes differ too, so that none of them is needed to tell encoders apart."""
_SHAPES = ("circle", "square", "diamond", "triangle-up")
_COST_SPREAD, _LOG_SPREAD = 1.05, 10.0
_WIDTH, _COST_WIDTH, _CURVE_WIDTH = 250.0, 360.0, 620.0
_LABEL_PIXELS = 14.0
_PADDING = 0.06
_CURVE_POINTS = 120


class Point(NamedTuple):
    """One encoder's value in one mode, with the half-width of its 95% interval if there is one.

    `series` fixes colour and shape; `at` is a cost, step or category, `samples` how many it is of;
    `bounds` are what the score can be, at which its interval ends.
    """

    label: str
    series: int
    joint: bool
    value: float
    half_width: float | None = None
    at: float | str | None = None
    samples: int = 0
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def mode(self) -> str:
        """`frozen` or `joint`."""
        return MODES[self.joint]

    @property
    def colour(self) -> str:
        """The series' colour."""
        return f"var(--s{self.series % SERIES})"

    @property
    def ends(self) -> list[float]:
        """The interval's ends within the bounds, or the value twice."""
        half, (low, high) = self.half_width or 0.0, self.bounds
        return [round(max(low, self.value - half), 3), round(min(high, self.value + half), 3)]

    def row(self, **more: Any) -> dict[str, Any]:
        """Return the chart's data: value, interval, look and tooltip."""
        half = "" if self.half_width is None else f" ±{self.half_width:.1f}"
        place = f" at {self.at:,.4g}" if isinstance(self.at, float) else f" at {self.at}"
        name = f"{self.label}, {self.mode}"
        return {
            "label": self.label,
            "mode": self.mode,
            "name": name,
            "at": self.at,
            "value": round(self.value, 3),
            "low": self.ends[0],
            "high": self.ends[1],
            "colour": self.colour,
            "fill": self.colour if self.joint else "var(--paper)",
            "shape": _SHAPES[(self.series + self.series // SERIES) % len(_SHAPES)],
            "text": f"{name}: {self.value:.1f}{half}{'' if self.at is None else place}",
            **more,
        }


_COLOUR = alt.Color("colour:N", scale=None)
_LOOK = {
    "color": _COLOUR,
    "fill": alt.Fill("fill:N", scale=None),
    "shape": alt.Shape("shape:N", scale=None),
    "tooltip": alt.Tooltip("text:N"),
    "description": alt.Description("text:N"),
}


def score_chart(
    title: str, points: Sequence[Point], order: Sequence[str], blind: float | None
) -> alt.LayerChart:
    """Return each encoder's score and interval, frozen above joint, and the best blind score."""
    blinds = [] if blind is None else [round(blind, 3)]
    x = _scaled([end for point in points for end in point.ends] + blinds)
    base = _by_encoder(points, order, [point.row() for point in points]).encode(
        yOffset=alt.YOffset("mode:N", scale=alt.Scale(domain=["frozen", "joint"]))
    )
    at = alt.Chart({"values": [{"blind": value} for value in blinds]}).encode(x("blind:Q"))
    note = f"best blind {blinds[0]:.1f}" if blinds else ""
    layers = (
        at.mark_rule(strokeDash=[4, 3], color="var(--soft)", aria=False),
        at.mark_text(dy=-6, color="var(--soft)", text=note).encode(y=alt.value(0)),
        base.mark_rule(strokeWidth=1.5, aria=False).encode(x("low:Q"), x2="high:Q"),
        base.mark_point().encode(x("value:Q"), **_LOOK),
    )
    return _layered(layers, title, _WIDTH, alt.Step(13), f"{title} with 95% intervals")


def change_chart(title: str, points: Sequence[Point]) -> alt.LayerChart | None:
    """Return frozen to joint, a line per encoder, largest gain first; None without a pair."""
    frozen = {point.label: point for point in points if not point.joint}
    pairs = [(frozen[p.label], p) for p in points if p.joint and p.label in frozen]
    if not pairs:
        return None
    pairs.sort(key=lambda pair: pair[0].value - pair[1].value)
    ends, order = [point for pair in pairs for point in pair], [joint.label for _, joint in pairs]
    changes = [(joint, before.value, joint.value - before.value) for before, joint in pairs]
    rows = [joint.row(start=start, change=f"{by:+.1f}") for joint, start, by in changes]
    x = _scaled([point.value for point in ends])
    line = _by_encoder(ends, order, rows)
    shown = _by_encoder(ends, order, [point.row() for point in ends])
    change = line.mark_text(align="right", fontWeight="bold")
    layers = (
        line.mark_rule(strokeWidth=2, aria=False).encode(x("start:Q"), x2="value:Q"),
        shown.mark_point().encode(x("value:Q"), **_LOOK),
        change.encode(x=alt.value(_WIDTH + 36), text="change:N"),
    )
    return _layered(layers, title, _WIDTH, alt.Step(20), f"{title}, frozen to joint")


def cost_chart(
    score: str, axis: str, points: Sequence[Point], *, lower: bool = False
) -> alt.LayerChart | None:
    """Return a score against cost; the dotted line joins what nothing cheaper outscores.

    `lower` says that the least score is the best.

    None where the costs differ by less than 5%. The axis is logarithmic where they differ ten
    times and more.
    """
    costs = sorted(point.at for point in points if isinstance(point.at, float))
    if len(costs) < 2 or costs[-1] <= _COST_SPREAD * costs[0]:
        return None
    log = costs[0] > 0 and costs[-1] / costs[0] >= _LOG_SPREAD
    last = {point.label: point for point in sorted(points, key=lambda point: point.joint)}
    height = max(240.0, _LABEL_PIXELS * len(last) + 20)
    domain = [costs[0] / 1.2, costs[-1] * 1.2] if log else _domain(costs)
    x = alt.X(
        "at:Q",
        scale=alt.Scale(type="log" if log else "linear", domain=domain, nice=False),
        axis=alt.Axis(grid=False, tickCount=5, format="~g"),
        title=axis + (" (log scale)" if log else ""),
    )
    scores = _domain([end for point in points for end in point.ends])
    y = alt.Y("value:Q", scale=alt.Scale(domain=scores, nice=False), title=score)
    base = alt.Chart({"values": [point.row() for point in points]}).encode(x, y, _COLOUR)
    best = alt.Chart({"values": [point.row() for point in frontier(points, lower=lower)]}).encode(
        x, y
    )
    layers = (
        best.mark_line(strokeDash=[1, 4], strokeCap="round", color="var(--soft)", aria=False),
        *_end_labels(list(last.values()), scores, x, _COST_WIDTH, height),
        base.mark_line(strokeWidth=1, aria=False).encode(detail="label:N"),
        base.mark_rule(opacity=0.4, aria=False).encode(y="low:Q", y2="high:Q"),
        base.mark_point().encode(**_LOOK),
    )
    return _layered(layers, cost_title(score, axis), _COST_WIDTH, height)


def cost_title(score: str, axis: str) -> str:
    """Return a chart's title, without what its axis says after a comma."""
    return f"{score} against {axis.partition(',')[0]}"


def frontier(points: Sequence[Point], *, lower: bool = False) -> list[Point]:
    """Return the points that nothing as cheap or cheaper outscores, cheapest first."""
    best: list[Point] = []
    sign = -1.0 if lower else 1.0
    for point in sorted(points, key=lambda point: (point.at, -sign * point.value)):
        if not best or sign * point.value > sign * best[-1].value:
            best.append(point)
    return best


def curve_chart(
    title: str, curves: Sequence[tuple[Point, Sequence[tuple[float, float]]]]
) -> alt.LayerChart | None:
    """Return a line per point over training steps, each a list of (step, loss)."""
    drawn = [(point, curve) for point, curve in curves if curve]
    if not drawn:
        return None
    rows, ends = [], []
    for p, curve in drawn:
        kept = [*curve[:: max(1, len(curve) // _CURVE_POINTS)], curve[-1]]
        look = {"label": p.label, "colour": p.colour, "mode": p.mode}
        rows += [look | {"at": step, "value": round(loss, 4)} for step, loss in kept]
        ends.append(Point(p.label, p.series, p.joint, curve[-1][1], at=curve[-1][0]))
    height = max(260.0, _LABEL_PIXELS * len(drawn) + 20)
    losses = _domain([loss for _, curve in drawn for _, loss in curve])
    x = alt.X("at:Q", axis=alt.Axis(grid=False), title="step")
    y = alt.Y("value:Q", scale=alt.Scale(domain=losses, nice=False), title=None)
    modes = alt.Scale(domain=["joint", "frozen"], range=[[1, 0], [5, 3]])
    dash = alt.StrokeDash("mode:N", scale=modes, legend=None)
    line = alt.Chart({"values": rows}).mark_line(strokeWidth=1.5)
    layers = (
        line.encode(x, y, _COLOUR, dash, detail="label:N"),
        *_end_labels(ends, losses, x, _CURVE_WIDTH, height),
    )
    return _layered(layers, title, _CURVE_WIDTH, height)


def error_chart(
    title: str, points: Sequence[Point], headings: Mapping[str, str]
) -> alt.LayerChart | None:
    """Return a grid of scores, a row per encoder and mode; None without two categories.

    Points are at categories; `headings` are those of the categories that are shown.
    """
    kept = [point for point in points if point.at in headings]
    if len(headings) < 2:
        return None
    rows = []
    for point in kept:
        half = "" if point.half_width is None else f" ±{point.half_width:.0f}"
        name = f"{point.mode} · {point.label}"  # a long name loses its end
        at = headings[str(point.at)]
        rows.append(point.row(at=at, shown=f"{point.value:.0f}{half}", name=name))
    lines = "split(datum.label, '\\n')"
    axis = alt.Axis(orient="top", labelAngle=0, labelPadding=18, labelExpr=lines)
    names = list(dict.fromkeys(row["name"] for row in rows))
    base = alt.Chart({"values": rows}).encode(
        alt.Y("name:N", sort=names, title=None),
        alt.X("at:N", sort=list(headings.values()), title=None, axis=axis),
        tooltip="text:N",
        description="text:N",
    )
    ends = alt.Scale(domain=_domain([point.value for point in kept]), range=[0.03, 0.38])
    shade = alt.FillOpacity("value:Q", scale=ends, legend=None)
    layers = (
        base.mark_rect(fill="var(--accent)", stroke="var(--paper)", aria=False).encode(shade),
        base.mark_text().encode(text="shown:N"),
    )
    longest = max(len(line) for heading in headings.values() for line in heading.split("\n"))
    width = max(52, min(6 * longest + 8, 110)) * len(headings)
    return _layered(layers, title, width, alt.Step(19))


def keep_apart(positions: Sequence[float], gap: float, high: float) -> list[float]:
    """Return positions moved up, but never above `high`, so that none are closer than `gap`.

    >>> keep_apart([11.0, 10.0, 30.0], 5.0, 31.0)
    [15.0, 10.0, 30.0]
    """
    order, steps = np.argsort(positions, kind="stable"), gap * np.arange(len(positions))
    raised = np.maximum.accumulate(np.asarray(positions)[order] - steps) + steps
    placed = np.empty(len(positions))
    placed[order] = np.minimum(raised, high - steps[::-1])
    return [float(place) for place in placed]


def _by_encoder(
    points: Sequence[Point], order: Sequence[str], rows: list[dict[str, Any]]
) -> alt.Chart:
    """Return a chart with a row per encoder, its name in its colour."""
    colours = json.dumps({point.label: point.colour for point in points})
    axis = alt.Axis(labelColor=alt.expr(f"{colours}[datum.value]"), labelFontSize=12)
    y = alt.Y("label:N", sort=list(order), title=None, axis=axis)
    return alt.Chart({"values": rows}).encode(y, _COLOUR)


def _end_labels(
    points: Sequence[Point], domain: Sequence[float], x: alt.X, width: float, height: float
) -> tuple[alt.Chart, alt.Chart]:
    """Return the points' names on the right, none over another, and a thin line to each."""
    gap = _LABEL_PIXELS * (domain[1] - domain[0]) / height
    places = keep_apart([point.value for point in points], gap, domain[1])
    rows = [point.row(place=place) for point, place in zip(points, places, strict=True)]
    base = alt.Chart({"values": rows})
    leader = base.mark_rule(color="var(--line)", aria=False)
    name = base.mark_text(align="left", baseline="middle").encode(_COLOUR, text="label:N")
    return (
        leader.encode(x, y="value:Q", x2=alt.value(width + 8), y2="place:Q"),
        name.encode(x=alt.value(width + 12), y="place:Q"),
    )


def _scaled(values: Sequence[float]) -> Callable[[str], alt.X]:
    """Return what puts a field on the x-axis that all layers share and that holds the values."""
    scale, axis = alt.Scale(domain=_domain(values), nice=False), alt.Axis(tickCount=5)
    return lambda field: alt.X(field, scale=scale, axis=axis, title=None)


def _domain(values: Sequence[float]) -> list[float]:
    """Return bounds that hold all values with a margin, never of zero width."""
    low, high = min(values), max(values)
    margin = (high - low) * _PADDING or max(abs(high) * _PADDING, 1.0)
    return [low - margin, high + margin]


def _layered(
    layers: Sequence[alt.Chart], title: str, width: float, height: Any, description: str = ""
) -> alt.LayerChart:
    return alt.LayerChart(
        layer=list(layers),
        title=title,
        description=description or title,
        width=width,
        height=height,
    )
