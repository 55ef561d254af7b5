"""`encoder-bench table | compare | contrasts | recommend | report`: what several records make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from encoder_bench.base.files import write_text
from encoder_bench.base.record import RunRecord, read_records, require_records
from encoder_bench.cli import options
from encoder_bench.cli.printing import print_grid

if TYPE_CHECKING:
    from rich.text import Text

    from encoder_bench.results.contrasts import Contrast

Format = Literal["terminal", "md", "csv", "tex", "html", "json"]
Family = Literal["blind", "twins", "joint", "encoders"]
_CONTRAST_COLUMNS = (
    "mode", "column", "A", "B", "A ", "B ", "A − B", "95% interval", "p (Holm)",
)  # fmt: skip
CONTRASTS_EPILOG = (
    "Interval and p cover the choice of images and of seeds, like the table's ±. With one seed the "
    "variance between seeds is unknown, and they cover the images alone."
)

Columns = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="More columns: parameters, gflops, visual-tokens, device-hours (GPU-hours), "
        "training-seconds, peak-memory, throughput, parse-failures.",
    ),
]
Ties = Annotated[
    bool | None,
    typer.Option(
        "--ties/--no-ties",
        help="Mark rows not significantly worse than the best (Holm); by default where all "
        "predictions are there.",
    ),
]


def table_command(
    results: options.Results = options.RESULTS,
    write: Annotated[
        bool,
        typer.Option(
            "--write", help="Rewrite table.md, .csv, .tex, .html and .json in the folder too."
        ),
    ] = False,
    ties: Ties = None,
    compare: Annotated[
        Literal["reported"] | None, typer.Option(help="The published figures beside ours.")
    ] = None,
    columns: Columns = "",
    sort: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Encoders of a mode by a column, the best first."),
    ] = None,
    filter_: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="TEXT",
            help="Only encoders whose name, family, supervision or mode has this text.",
        ),
    ] = None,
    format_: Annotated[
        Format,
        typer.Option(
            "--format", metavar="md|csv|tex|html|json", help="Print in a format, and nothing else."
        ),
    ] = "terminal",
    debug: options.Debug = False,
) -> None:
    """Print the comparison table, made from the records and their predictions.

    Best bold, second best underlined, ties with the best marked, blind baselines in italics.
    """
    records = require_records(results)
    if compare is not None:
        written = _print_reported(results, records, format_, write=write)
    else:
        extra = options.listed(columns)
        written = _print_table(
            results, records, extra, ties, format_, write=write, sort=sort, contains=filter_
        )
    for path in written:
        typer.echo(f"wrote {path}", err=format_ != "terminal")


def _print_table(
    results: Path,
    records: list[RunRecord],
    extra: list[str],
    ties: bool | None,
    format_: Format,
    *,
    write: bool,
    sort: str | None,
    contains: str | None,
) -> list[Path]:
    from encoder_bench.results.contrasts import best_ties, over_twins, usual_ties
    from encoder_bench.results.formats import FORMATS, print_page, write_tables
    from encoder_bench.results.page import table_page
    from encoder_bench.results.table import arranged, build_tables

    found, reason = usual_ties(results, records) if ties is None else (None, None)
    if ties:
        found = best_ties(results, records)
    gains = None if found is None else over_twins(results, records)
    tables = build_tables(records, extra=extra, ties=found, gains=gains)
    shown = arranged(tables, sort=sort, contains=contains)
    if format_ == "terminal":
        for table in shown:
            print_page(table_page(table))
    else:
        typer.echo(FORMATS[format_](shown), nl=False)
    if contains is not None:
        rows = [row for table in shown for row in table.rows if row.runs]
        typer.echo(f"{len(rows)} encoder rows hold it; best and ranks are of all rows", err=True)
    if reason is not None:
        typer.echo(f"ties with the best are not marked: {reason}", err=True)
    return write_tables(results, tables) if write else []


def _print_reported(
    results: Path, records: list[RunRecord], format_: Format, *, write: bool
) -> list[Path]:
    from encoder_bench.results.formats import print_page, write_texts
    from encoder_bench.results.reported import reported_pages, reported_texts

    texts = reported_texts(records)
    if format_ == "terminal":
        for page in reported_pages(records):
            print_page(page)
    else:
        typer.echo(texts[format_], nl=False)
    return write_texts(results / "reported", texts) if write else []


def compare_command(
    run_a: options.Run,
    run_b: options.Run,
    results: options.Results = options.RESULTS,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a page with the flipped samples."),
    ] = None,
    data: options.Pictures = None,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    r"""Compare two runs, or all seeds of two rows: paired differences, flipped samples.

    A run is an id or the start of it, or ENCODER/MODE\[/SEED]; tiny-deit/joint means all its seeds.
    """
    from encoder_bench.results import compare_page
    from encoder_bench.results.compare import compare_runs
    from encoder_bench.results.formats import print_page
    from encoder_bench.results.runs import find_runs
    from encoder_bench.results.thumbnails import sample_pictures

    comparison = compare_runs(results, find_runs(results, run_a), find_runs(results, run_b))
    if json_output:
        typer.echo(json.dumps(compare_page.as_json(comparison), indent=1, ensure_ascii=False))
    else:
        print_page(compare_page.task_page(comparison))
        print_page(compare_page.metric_page(comparison))
    if html is not None:
        pictures = sample_pictures(data, [*comparison.runs_a, *comparison.runs_b])
        write_text(html, compare_page.to_html(comparison, pictures))
        typer.echo(f"wrote {html}", err=json_output)


def contrasts_command(
    results: options.Results = options.RESULTS,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE.csv", help="Also write them as CSV.")
    ] = None,
    only: Annotated[
        Family | None,
        typer.Option(help="Only this family."),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Test rows against blind baselines and random twins, joint against frozen, encoder pairs.

    Paired differences with 95% intervals over images and seeds, and p corrected by Holm's method.
    """
    from encoder_bench.results import contrasts as tests

    families = {
        "blind": tests.BLIND, "twins": tests.TWINS, "joint": tests.JOINT,
        "encoders": tests.ENCODERS,
    }  # fmt: skip
    found = tests.contrasts(results, require_records(results))
    for setting in dict.fromkeys(each.setting for each in found):
        typer.secho(setting, bold=True)
        for name, family in families.items():
            shown = [each for each in found if (each.setting, each.family) == (setting, family)]
            if shown and only in (None, name):
                rows = [_contrast_row(each) for each in shown]
                print_grid(_CONTRAST_COLUMNS, rows, left=4, title=family)
    if any(each.difference.seed_share is None for each in found):
        typer.echo("With one seed, the variance of seeds is not known.")
    if write is not None:
        write_text(write, tests.contrast_frame(found).to_csv(index=False, lineterminator="\n"))
        typer.echo(f"wrote {write}")


def _contrast_row(each: Contrast) -> list[Text]:
    from rich.text import Text

    scores = f"{each.score_a:.1f}", f"{each.score_b:.1f}", f"{each.difference.value:+.1f}"
    cells = each.mode, each.column, each.a, each.b, *scores, each.difference.interval(1)
    style = "" if each.p_holm < 0.05 else "dim"
    return [Text(cell, style) for cell in (*cells, f"{each.p_holm:.3f}")]


def recommend_command(
    results: options.Results = options.RESULTS,
    max_gflops: Annotated[
        float | None,
        typer.Option(metavar="N", min=0, help="Encoders of at most N GFLOPs per image."),
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(
            metavar="NAME,...", help="Choose by these tasks; by default those that Avg counts."
        ),
    ] = "",
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Say which encoder to choose, what ties with it, and whether joint tuning pays.

    It rests on paired differences over images and seeds, and says what they do not establish.
    """
    from dataclasses import asdict

    from encoder_bench.results.verdict import recommend

    records, chosen = require_records(results), options.listed(tasks)
    found = recommend(results, records, max_gflops=max_gflops, tasks=chosen)
    if json_output:
        rows = [asdict(each) | {"sentences": each.sentences()} for each in found]
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for each in found:
        typer.echo("\n  ".join([each.setting, *each.sentences()]))


def report_command(
    results: options.Results = options.RESULTS,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="The page; by default DIR/report.html."),
    ] = None,
    data: options.Pictures = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write all charts as SVG, PNG and PDF, for a paper."),
    ] = None,
    features: Annotated[
        bool, typer.Option(help="Show patch features, for which the encoders are loaded.")
    ] = True,
    samples: Annotated[
        int, typer.Option(metavar="N", min=0, help="At most N samples per task.")
    ] = 250,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write one self-contained HTML page: table, charts, samples, training checks, recipes."""
    from encoder_bench import api

    path = api.report(
        results, output=output, data=data, features=features, samples=samples, quiet=quiet
    )
    typer.echo(f"wrote {path}")
    if figures is not None:
        from encoder_bench.results.report.page import write_figures

        written = write_figures(read_records(results), figures)
        typer.echo(f"wrote {len(written)} files to {figures}")
    if open_page:
        typer.launch(str(path))
