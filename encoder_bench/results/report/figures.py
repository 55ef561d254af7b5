"""The report's charts as files of their own, for papers and slides.

What belongs here: standalone SVG. Each file carries the light theme's colours, so that it looks
the same wherever it is placed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from encoder_bench.atomic import write_text
from encoder_bench.results.record import RunRecord
from encoder_bench.results.report.content import Chapter, chapters
from encoder_bench.results.report.page import read_resource

_VARIABLE = re.compile(r"--([a-z0-9]+): (#[0-9a-f]{6})")
_RULE = re.compile(r"^svg ([^{]+)(\{[^}]*\})", flags=re.MULTILINE)


def write_figures(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Write every chart of the report as `FOLDER/TABLE-CHART.svg` and return the files.

    Args:
        records: run records.
        folder: where the files go; those of the same name are replaced.

    Raises:
        EncoderBenchError: the folder cannot be written.
    """
    style = standalone_style()
    written = []
    for number, chapter in enumerate(chapters(records), start=1):
        for chart in _charts(chapter):
            path = folder / f"table{number}-{_file_name(chart)}.svg"
            write_text(path, chart.replace(">", f"><style>{style}</style>", 1) + "\n")
            written.append(path)
    return written


def standalone_style() -> str:
    """Return the page's rules for charts, with the light theme's colours filled in."""
    css = read_resource("style.css")
    light = dict(_VARIABLE.findall(css[: css.index("@media")]))
    rules = [f"{selector.strip()} {body}" for selector, body in _RULE.findall(css)]
    series = [f".s{n} {{ --c: {light[f's{n}']}; }}" for n in range(8)]
    text = "\n".join(["svg { font: 12px system-ui, sans-serif; }", *rules, *series])
    text = text.replace("svg .", ".").replace("var(--c)", "VAR-C")
    text = re.sub(r"var\(--([a-z0-9]+)\)", lambda match: light[match.group(1)], text)
    return text.replace("VAR-C", "var(--c)")


def _charts(chapter: Chapter) -> list[str]:
    curves = (chapter.curves,) if chapter.curves else ()
    breakdowns = tuple(each.chart for each in chapter.breakdowns)
    return [*chapter.slopes, *chapter.intervals, *chapter.pareto, *curves, *breakdowns]


def _file_name(chart: str) -> str:
    match = re.search(r'aria-label="([^"]*)"', chart)
    label = match.group(1) if match else "chart"
    return re.sub(r"[^a-z0-9]+", "-", label.casefold()).strip("-")[:80]
