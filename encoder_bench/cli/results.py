"""`encoder-bench compare | report | results`: what is made from records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoder_bench.cli import options

if TYPE_CHECKING:
    from encoder_bench.base.record import RunRecord

_HELP_NAMES = {"help_option_names": ["-h", "--help"]}
results_app = typer.Typer(
    help="List, show, remove and export runs.", context_settings=_HELP_NAMES, no_args_is_help=True
)

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id or its beginning.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="scenes|DIR",
        help="Where the pictures are; without it those of the embedded scenes alone are found.",
    ),
]


def compare_command(
    run_a: Run,
    run_b: Run,
    results: options.Results = Path("results"),
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the flipped samples too.")
    ] = None,
    data: Data = None,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare two runs: paired differences with intervals, McNemar's table, flipped samples.

    A run is an id, its beginning, or ENCODER/MODE or ENCODER/MODE/SEED, as in tiny-deit/joint.
    """
    from rich.console import Console

    from encoder_bench.base.files import write_text
    from encoder_bench.results import compare_page
    from encoder_bench.results.compare import compare_runs
    from encoder_bench.results.runs import find_run
    from encoder_bench.results.terminal import print_page

    comparison = compare_runs(results, find_run(results, run_a), find_run(results, run_b))
    if json_output:
        typer.echo(json.dumps(compare_page.as_json(comparison), indent=1, ensure_ascii=False))
    else:
        print_page(compare_page.lay_out(comparison), Console())
        print_page(compare_page.lay_out_metrics(comparison), Console())
    if html is not None:
        pictures = _pictures(data, [comparison.run_a, comparison.run_b])
        write_text(html, compare_page.to_html(comparison, pictures))
        typer.echo(f"wrote {html}", err=json_output)


def report_command(
    results: options.Results = Path("results"),
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Instead of DIR/report.html.")
    ] = None,
    data: Data = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write every chart as SVG and PNG too, for a paper."),
    ] = None,
    features: Annotated[
        bool,
        typer.Option(help="Show patch features, for which the encoders are loaded."),
    ] = True,
    samples: Annotated[
        int, typer.Option(metavar="N", min=0, help="Samples a task in the browser, at most.")
    ] = 250,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write one self-contained HTML page: table, charts, samples, patch features, proofs."""
    from encoder_bench.base.progress import make_reporter
    from encoder_bench.base.record import read_records
    from encoder_bench.inspection.report_features import seen_features
    from encoder_bench.results.report.page import write_report

    records = read_records(results)
    pictures = _pictures(data, records)
    seen = seen_features(results, records, pictures, make_reporter(quiet=quiet)) if features else {}
    path = write_report(
        results, output=output, images=pictures, features=seen, samples_per_task=samples
    )
    typer.echo(f"wrote {path}")
    if figures is not None:
        from encoder_bench.results.report.figures import write_figures

        typer.echo(f"wrote {len(write_figures(records, figures))} files to {figures}")
    if open_page:
        typer.launch(str(path))


@results_app.command("ls")
def list_command(
    results: options.Results = Path("results"),
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the runs of a results folder; damaged records are named, and make the exit status 1."""
    from encoder_bench.results.runs import inventory

    found = inventory(results)
    if json_output:
        rows = [_summary(record) for record in found.records]
        typer.echo(json.dumps({"runs": rows, "damaged": found.damaged}, indent=1))
    else:
        for record in found.records:
            mode = "joint " if record.joint else "frozen"
            scores = ", ".join(f"{name} {_value(record, name)}" for name in record.tasks)
            typer.echo(
                f"{record.run_id}  {record.created}  {record.encoder.name}  {mode}  "
                f"seed {record.seed}  {scores}"
            )
    for problem in found.damaged:
        typer.echo(f"damaged: {problem}", err=True)
    if found.damaged:
        raise typer.Exit(1)


@results_app.command("show")
def show_command(
    run: Run,
    results: options.Results = Path("results"),
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Print a run: row, parts, proof, recipe, hardware; the whole record with --json."""
    from encoder_bench.results.runs import find_run

    record = find_run(results, run)
    if json_output:
        typer.echo(record.model_dump_json(indent=1))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    from encoder_bench.results.model_card import record_sheet
    from encoder_bench.results.terminal import print_table

    console = Console()
    print_table([record], console)
    console.print(Markdown(record_sheet(record)))


@results_app.command("rm")
def remove_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...")],
    results: options.Results = Path("results"),
    debug: options.Debug = False,
) -> None:
    """Remove runs: record, predictions and checkpoints."""
    from encoder_bench.results.runs import remove_runs

    for removed in remove_runs(results, runs):
        typer.echo(f"removed {removed}")


@results_app.command("export")
def export_command(
    target: Annotated[Path, typer.Argument(help="FILE.parquet, or FILE.json for one run.")],
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="For JSON in the lm-eval harness's shape.")
    ] = None,
    results: options.Results = Path("results"),
    debug: options.Debug = False,
) -> None:
    """Export all predictions as Parquet, or one run's scores as lm-eval style JSON."""
    from encoder_bench.base.files import write_text
    from encoder_bench.base.record import read_records
    from encoder_bench.results.runs import export_harness, export_parquet, find_run

    if run is not None:
        write_text(target, json.dumps(export_harness(find_run(results, run)), indent=1) + "\n")
    else:
        export_parquet(results, read_records(results), target)
    typer.echo(f"wrote {target}")


def _summary(record: RunRecord) -> dict[str, object]:
    return {
        "run_id": record.run_id,
        "created": record.created,
        "encoder": record.encoder.name,
        "joint": record.joint,
        "seed": record.seed,
        "scores": {name: scores.metrics[scores.primary].value
                   for name, scores in record.tasks.items()},
    }  # fmt: skip


def _value(record: RunRecord, task: str) -> str:
    scores = record.tasks[task]
    value = scores.metrics[scores.primary].value
    return "n/a" if value is None else f"{value:.1f}"


def _pictures(data: str | None, records: Sequence[RunRecord]) -> dict[str, Path]:
    """Return image files by id, of the samples that records' tasks asked about.

    Without `data`, the embedded scenes are found by their names in the records.
    """
    from encoder_bench.data.folder import open_data

    found: dict[str, Path] = {}
    asked: set[tuple[str, str, str, str]] = set()
    for record in records:
        name = data or str(record.data.get("name", ""))
        if data is None and name != "scenes" and not name.startswith("scenes:"):
            continue
        for task, scores in record.tasks.items():
            reader, source = (scores.definition.get(key) for key in ("reader", "source"))
            if reader and source and (name, task, reader, source) not in asked:
                asked.add((name, task, reader, source))
                samples = open_data(name).samples(task, reader=reader, source=source, split="test")
                found |= {str(sample.image_id): sample.image_path for sample in samples}
    return found
