"""The report's charts as files of their own, for papers and slides.

What belongs here: standalone SVG, and PNG drawn from it. Each file carries the light theme's
colours as plain rules without CSS variables, which many readers of SVG do not know.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path

from encoder_bench.base.files import write_bytes, write_text
from encoder_bench.base.record import RunRecord
from encoder_bench.results.report.content import Chapter, chapters
from encoder_bench.results.report.resources import standalone_style

_FONT = "DejaVu Sans"


def write_figures(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Write every chart of the report as `FOLDER/TABLE-CHART.svg` and `.png`; return the files.

    PNG has twice the SVG's pixels and a white background.

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
            svg = chart.replace(">", f"><style>{style}</style>", 1) + "\n"
            path = folder / f"table{number}-{_file_name(chart)}.svg"
            write_text(path, svg)
            picture = path.with_suffix(".png")
            write_bytes(picture, to_png(svg))
            written += [path, picture]
    return written


def to_png(svg: str, *, zoom: float = 2.0) -> bytes:
    """Return an SVG as PNG on white, its text in DejaVu Sans, which comes with matplotlib."""
    import matplotlib as mpl
    import resvg_py

    fonts = Path(mpl.get_data_path()) / "fonts" / "ttf"
    drawn = resvg_py.svg_to_bytes(
        svg_string=svg,
        background="#ffffff",
        zoom=zoom,
        skip_system_fonts=True,
        font_files=[str(fonts / "DejaVuSans.ttf"), str(fonts / "DejaVuSans-Bold.ttf")],
        font_family=_FONT,
        sans_serif_family=_FONT,
    )
    return bytes(drawn)


def _charts(chapter: Chapter) -> list[str]:
    curves = (chapter.curves,) if chapter.curves else ()
    breakdowns = tuple(each.chart for each in chapter.breakdowns)
    return [*chapter.slopes, *chapter.intervals, *chapter.pareto, *curves, *breakdowns]


def _file_name(chart: str) -> str:
    match = re.search(r'aria-label="([^"]*)"', chart)
    label = unescape(match.group(1)) if match else "chart"
    return re.sub(r"[^a-z0-9]+", "-", label.casefold()).strip("-")[:80]
