"""The report: one self-contained HTML file, made from records and predictions.

What belongs here: filling the template and writing the file. The page asks the network for
nothing: styles, script, charts, pictures and samples all lie in it, and its content security
policy forbids the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from encoder_bench.base.files import write_text
from encoder_bench.base.record import RunRecord, require_records
from encoder_bench.results.formats import html_table
from encoder_bench.results.report.content import Chapter, chapters, row_name
from encoder_bench.results.report.features import Seen
from encoder_bench.results.report.resources import read_resource, standalone_style
from encoder_bench.results.report.samples import browse, thumbnails

PICTURE_BYTES = 9_000_000
"""The room that pictures may take; with 20 runs of 1,000 samples a page stays under 15 MB."""


def write_report(
    results: Path,
    *,
    output: Path | None = None,
    images: Mapping[str, Path] | None = None,
    features: Mapping[str, Seen] | None = None,
    samples_per_task: int = 250,
) -> Path:
    """Write `results/report.html` from the records and the predictions beside them.

    Args:
        results: the results folder.
        output: another place for the file.
        images: `str(image_id)` -> image file, for the browser of samples; without it, samples
            have no pictures.
        features: table heading -> pictures of what its encoders see.
        samples_per_task: at most so many samples a task in the browser.

    Returns:
        The file's path.

    Raises:
        RecordError: there are no records, or one is damaged.
    """
    records = require_records(results)
    path = output or results / "report.html"
    page = render(
        results,
        records,
        images or {},
        features=features or {},
        samples_per_task=samples_per_task,
    )
    write_text(path, page)
    return path


def render(
    results: Path,
    records: Sequence[RunRecord],
    images: Mapping[str, Path],
    *,
    features: Mapping[str, Seen],
    samples_per_task: int,
) -> str:
    """Return the report's HTML; predictions that cannot be read are named on the page."""
    parts = chapters(records, results=results)
    tables, problems = browse(results, [part.group for part in parts], limit=samples_per_task)
    pictures = thumbnails(tables, images, budget_bytes=PICTURE_BYTES)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["pretty"] = _pretty
    template = environment.from_string(read_resource("template.html.j2"))
    return template.render(
        style=Markup(read_resource("style.css")),
        script=Markup(read_resource("script.js")),
        chart_style=Markup(standalone_style()),
        chapters=[_template_chapter(part, features.get(part.heading)) for part in parts],
        problems=problems,
        samples=_embedded({"tables": tables, "images": pictures}),
        has_samples=any(entry["tasks"] for entry in tables),
    )


def _template_chapter(part: Chapter, seen: Seen | None) -> dict[str, Any]:
    return {
        "heading": part.heading,
        "table": Markup(html_table(part.page)),
        "footnotes": part.page.footnotes,
        "slopes": [Markup(chart) for chart in part.slopes],
        "intervals": [Markup(chart) for chart in part.intervals],
        "pareto": [Markup(chart) for chart in part.pareto],
        "no_pareto": part.no_pareto,
        "features": seen,
        "curves": Markup(part.curves) if part.curves else None,
        "breakdowns": [(each.title, Markup(each.chart)) for each in part.breakdowns],
        "runs": [
            (row_name(row), record.model_dump(mode="json"))
            for row in part.group.rows
            for record in row.records
        ],
    }


def _embedded(value: Any) -> Markup:
    """Return JSON that no text within can end the script element of."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
