"""The report: one self-contained HTML file, and its charts as files for papers and slides.

The page asks the network for nothing: styles, scripts, charts, pictures and samples all lie in it,
and its content security policy forbids the rest.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from encoder_bench.base.files import write_bytes, write_text
from encoder_bench.base.record import RunRecord, require_records
from encoder_bench.results.formats import html_table
from encoder_bench.results.page import table_page
from encoder_bench.results.report.content import Chapter, chapters
from encoder_bench.results.report.samples import browse, thumbnails
from encoder_bench.results.thumbnails import Seen

MAX_PICTURE_BYTES = 9_000_000
"""Of all pictures; with 20 runs of 1,000 samples a page stays under 15 MB."""
PNG_ZOOM = 2.0
_VARIABLE = re.compile(r"--([a-z0-9]+): (#[0-9a-f]{6})")
_WRITERS: dict[str, Callable[[str], bytes]] = {
    "svg": lambda spec: vl_convert.vegalite_to_svg(spec).encode(),
    "png": lambda spec: vl_convert.vegalite_to_png(spec, scale=PNG_ZOOM),
    "pdf": vl_convert.vegalite_to_pdf,
}


def write_report(
    results: Path,
    *,
    output: Path | None = None,
    images: Mapping[str, Path] | None = None,
    features: Mapping[str, Seen] | None = None,
    samples_per_task: int = 250,
    verdict: Sequence[str] = (),
) -> Path:
    """Write `results/report.html` from the records and the predictions; return its path.

    Predictions that cannot be read are named on the page. `output` is another path of the file;
    `images` are `str(image_id)` -> image file, of the samples that have pictures; `features` are
    table heading -> what its encoders see; `verdict` are sentences above everything else.

    Raises:
        RecordError: there are no records, or one is damaged.
    """
    records = require_records(results)
    parts = chapters(records, results=results)
    tables, problems = browse(results, parts, limit=samples_per_task)
    pictures = thumbnails(tables, images or {}, budget_bytes=MAX_PICTURE_BYTES)
    specs: list[dict[str, Any]] = []
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.from_string(read_resource("template.html.j2")).render(
        title=_title(records),
        verdict=verdict,
        chapters=[
            _template_chapter(part, (features or {}).get(part.table.heading), specs)
            for part in parts
        ],
        problems=problems,
        has_samples=any(entry["tasks"] for entry in tables),
        samples=_embedded({"tables": tables, "images": pictures}),
        charts=_embedded({"config": chart_config(), "light": light_colours(), "specs": specs}),
        style=Markup(read_resource("style.css")),
        vega=Markup(_vega()) if specs else "",
        script=Markup(read_resource("script.js")),
    )
    path = output or results / "report.html"
    write_text(path, page)
    return path


def _title(records: Sequence[RunRecord]) -> str:
    encoders = len({record.encoder.name for record in records})
    found = {record.joint for record in records}
    modes = [name for joint, name in ((False, "frozen"), (True, "jointly tuned")) if joint in found]
    named = "1 visual encoder" if encoders == 1 else f"{encoders} visual encoders"
    return f"{named} in a multimodal LLM, {' and '.join(modes)}"


def _template_chapter(
    part: Chapter, seen: Seen | None, specs: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what the template shows of a chapter; its charts are added to `specs`."""
    page, numbers = table_page(part.table), {}
    for section, charts in part.charts.items():
        numbers[section] = range(len(specs), len(specs) + len(charts))
        specs.extend(chart.to_dict(validate=False) for chart in charts)
    runs = [(f"{r.name}, seed {run.seed}", run) for r in part.rows for run in r.records]
    return {
        "heading": part.table.heading,
        "table": Markup(html_table(page)),
        "footnotes": page.footnotes,
        "charts": numbers,
        "no_cost": part.no_cost,
        "features": seen,
        "runs": runs,
        "shared": list(_shared(runs)),
    }


def _shared(runs: Sequence[tuple[str, RunRecord]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield recipes, data and hardware: each distinct text once, after the runs that it is of."""
    settings: dict[str, dict[str, list[str]]] = {}
    for run, record in runs:
        named: dict[str, Any] = {
            "Adapter recipe": record.adapter,
            **{f"Task recipe {t}": scores.definition for t, scores in record.tasks.items()},
            "Data": {"test": record.data, "training": record.training_data},
            "Hardware and versions": record.hardware | {"versions": record.versions},
        }
        for name, value in named.items():
            text = json.dumps(value, indent=2, ensure_ascii=False)
            settings.setdefault(name, {}).setdefault(text, []).append(run)
    for name, texts in settings.items():
        yield (
            name,
            [
                ("all runs" if len(of) == len(runs) else "; ".join(of), text)
                for text, of in texts.items()
            ],
        )


@functools.cache
def _vega() -> str:
    """Return the Vega libraries as one script, which no text within can end."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def _embedded(value: Any) -> Markup:
    """Return JSON that no text within can end the script element of."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


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
