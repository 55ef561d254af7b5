"""The report: one self-contained HTML file, and its charts as files for papers and slides.

The page asks the network for nothing; its content security policy forbids it.
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
from markupsafe import Markup

from encoder_bench.base.files import write_bytes, write_text
from encoder_bench.base.record import RunRecord, require_records
from encoder_bench.results.formats import style_sheet, templates
from encoder_bench.results.page import table_page
from encoder_bench.results.report.content import Chapter, browse, chapters, thumbnails
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
    verdict: Sequence[tuple[str, Sequence[str]]] = (),
) -> Path:
    """Write `results/report.html` from the records and the predictions; return its path.

    Predictions that cannot be read are named on the page. `output` is another path of the file;
    `images` are `str(image_id)` -> image file, of the samples that have pictures; `features` are
    table heading -> what its encoders see; `verdict` are headings and sentences above
    everything else.

    Raises:
        RecordError: there are no records, or one is damaged.
    """
    records = require_records(results)
    parts = chapters(records, results=results)
    tables, problems = browse(results, parts, limit=samples_per_task)
    pictures = thumbnails(tables, images or {}, budget_bytes=MAX_PICTURE_BYTES)
    specs: list[dict[str, Any]] = []
    page = (
        templates()
        .get_template("report.html.j2")
        .render(
            title=_title(records),
            verdict=verdict,
            chapters=[_template_chapter(part, features or {}, specs) for part in parts],
            problems=problems,
            has_samples=any(entry["tasks"] for entry in tables),
            samples=_embedded({"tables": tables, "images": pictures}),
            charts=_embedded(
                {"config": _chart_config(), "light": _light_colours(), "specs": specs}
            ),
            vega=Markup(_vega()) if specs else "",
            script=Markup(_read("script.js")),
        )
    )
    path = output or results / "report.html"
    write_text(path, page)
    return path


def _title(records: Sequence[RunRecord]) -> str:
    names = {record.encoder.name: record.encoder.pretrained for record in records}
    encoders = sum(names.values()) or len(names)
    found = {record.joint for record in records}
    modes = [name for joint, name in ((False, "frozen"), (True, "jointly tuned")) if joint in found]
    named = "1 visual encoder" if encoders == 1 else f"{encoders} visual encoders"
    return f"{named} in a multimodal LLM, {' and '.join(modes)}"


def _template_chapter(
    part: Chapter, seen: Mapping[str, Seen], specs: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what the template shows of a chapter; its charts are added to `specs`."""
    numbers = {}
    for section, charts in part.charts.items():
        numbers[section] = range(len(specs), len(specs) + len(charts))
        specs.extend(chart.to_dict(validate=False) for chart in charts)
    runs = [(f"{r.name}, seed {run.seed}", run) for r in part.rows for run in r.records]
    return {
        "page": table_page(part.table),
        "charts": numbers,
        "no_cost": part.no_cost,
        "features": seen.get(part.table.heading),
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
        of = ["all runs" if len(own) == len(runs) else "; ".join(own) for own in texts.values()]
        yield name, list(zip(of, texts, strict=True))


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
        names: set[str] = set()
        for chart in itertools.chain.from_iterable(chapter.charts.values()):
            spec = chart.to_dict(validate=False)
            name = re.sub(r"[^a-z0-9]+", "-", spec["description"].casefold()).strip("-")[:80]
            name = name if name not in names else f"{name}-{len(names) + 1}"
            names.add(name)
            for ending, convert in _WRITERS.items():
                path = folder / f"table{number}-{name}.{ending}"
                write_bytes(path, convert(_in_light(spec)))
                written.append(path)
    return written


def _in_light(spec: dict[str, Any]) -> str:
    colours = _light_colours()
    text = json.dumps(spec | {"config": _chart_config()})
    return re.sub(r"var\(--([a-z0-9]+)\)", lambda match: colours[match.group(1)], text)


def _chart_config() -> dict[str, Any]:
    """Return the charts' shared look; `var(--NAME)` in it is a colour of `style.css`."""
    config: dict[str, Any] = json.loads(_read("chart_config.json"))
    return config


def _light_colours() -> dict[str, str]:
    """Return the light theme's colours in `style.css` by name."""
    return dict(_VARIABLE.findall(style_sheet().partition("@media")[0]))


def _read(name: str) -> str:
    return (resources.files("encoder_bench.results.report") / name).read_text(encoding="utf-8")
