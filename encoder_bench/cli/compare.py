"""`encoder-bench compare | contrasts | report`: what is made from several records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.cli import options
from encoder_bench.cli.printing import grid

if TYPE_CHECKING:
    from encoder_bench.results.contrasts import Contrast

_CONTRAST_COLUMNS = (
    "mode", "column", "A", "B", "A ", "B ", "A − B", "95% interval", "p (Holm)",
)  # fmt: skip
CONTRASTS_EPILOG = (
    "Interval and p cover the choice of images and of seeds, like the table's ±. With one seed the "
    "variance between seeds is unknown, and they cover the images alone."
)


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
    from encoder_bench.base.files import write_text
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
        str | None, typer.Option(metavar="blind|twins|joint|encoders", help="Only this family.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Test rows against blind baselines and random twins, joint against frozen, encoder pairs.

    Paired differences with 95% intervals over images and seeds, and p corrected by Holm's method.
    """
    from rich.console import Console

    from encoder_bench.base.files import write_text
    from encoder_bench.base.record import require_records
    from encoder_bench.results.contrasts import (
        BLIND,
        ENCODERS,
        JOINT,
        TWINS,
        contrast_frame,
        contrasts,
    )

    families = {"blind": BLIND, "twins": TWINS, "joint": JOINT, "encoders": ENCODERS}
    if only is not None and only not in families:
        raise UnknownNameError("family", only, families)
    found = contrasts(results, require_records(results))
    console = Console()
    for setting in dict.fromkeys(each.setting for each in found):
        console.print(setting, style="bold", markup=False, highlight=False)
        for name, family in families.items():
            shown = [each for each in found if (each.setting, each.family) == (setting, family)]
            if shown and only in (None, name):
                rows = map(_contrast_row, shown)
                console.print(grid(_CONTRAST_COLUMNS, rows, left=4, title=family))
    if any(each.difference.seed_share is None for each in found):
        console.print("With one seed, the variance of seeds is not known.", highlight=False)
    if write is not None:
        write_text(write, contrast_frame(found).to_csv(index=False, lineterminator="\n"))
        typer.echo(f"wrote {write}")


def _contrast_row(each: Contrast) -> tuple[str, ...]:
    cells = (
        each.mode,
        each.column,
        each.a,
        each.b,
        f"{each.score_a:.1f}",
        f"{each.score_b:.1f}",
        f"{each.difference.value:+.1f}",
        each.difference.interval(1),
        f"{each.p_holm:.3f}",
    )
    return cells if each.p_holm < 0.05 else tuple(f"[dim]{cell}[/]" for cell in cells)


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

    from encoder_bench.base.record import require_records
    from encoder_bench.cli.printing import print_lines
    from encoder_bench.results.verdict import recommend

    records = require_records(results)
    chosen = options.listed(tasks)
    found = recommend(results, records, max_gflops=max_gflops, tasks=chosen)
    if json_output:
        rows = [asdict(each) | {"sentences": each.sentences()} for each in found]
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for each in found:
        print_lines([each.setting, *(f"  {sentence}" for sentence in each.sentences())])


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
    from encoder_bench.base.record import read_records

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
