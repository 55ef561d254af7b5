"""Charts outside the page: as files for papers and slides, in the light theme's colours."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import vl_convert

from encoder_bench.base.files import write_bytes
from encoder_bench.base.record import RunRecord
from encoder_bench.results.report.content import chapters

PNG_ZOOM = 2.0
_VARIABLE = re.compile(r"--([a-z0-9]+): (#[0-9a-f]{6})")
_WRITERS: dict[str, Callable[[str], bytes]] = {
    "svg": lambda spec: vl_convert.vegalite_to_svg(spec).encode(),
    "png": lambda spec: vl_convert.vegalite_to_png(spec, scale=PNG_ZOOM),
    "pdf": vl_convert.vegalite_to_pdf,
}


def write_figures(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Write every chart of the report as `FOLDER/TABLE-CHART.svg`, `.png` and `.pdf`.

    PNG has twice the SVG's pixels; the background is white. Files of the same name are replaced.

    Raises:
        EncoderBenchError: the folder cannot be written.
    """
    written = []
    for number, chapter in enumerate(chapters(records), start=1):
        for chart in itertools.chain.from_iterable(chapter.charts.values()):
            spec = chart.to_dict(validate=False)
            name = re.sub(r"[^a-z0-9]+", "-", spec["description"].casefold()).strip("-")[:80]
            for ending, convert in _WRITERS.items():
                path = folder / f"table{number}-{name}.{ending}"
                write_bytes(path, convert(_in_light(spec)))
                written.append(path)
    return written


def read_resource(name: str) -> str:
    """Return one of the files beside this module: template, style or script."""
    return (resources.files("encoder_bench.results.report") / name).read_text(encoding="utf-8")


def chart_config() -> dict[str, Any]:
    """Return the charts' shared look; `var(--NAME)` in it is a colour of `style.css`."""
    config: dict[str, Any] = json.loads(read_resource("chart_config.json"))
    return config


def light_colours() -> dict[str, str]:
    """Return the light theme's colours in `style.css` by name."""
    css = read_resource("style.css")
    return dict(_VARIABLE.findall(css[: css.index("@media")]))


def _in_light(spec: dict[str, Any]) -> str:
    colours = light_colours()
    text = json.dumps(spec | {"config": chart_config()})
    return re.sub(r"var\(--([a-z0-9]+)\)", lambda match: colours[match.group(1)], text)
