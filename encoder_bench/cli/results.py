"""`encoder-bench results`: list, show, remove and export runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoder_bench.cli import options

if TYPE_CHECKING:
    from encoder_bench.base.record import RunRecord

results_app = options.group("List, show, remove and export runs.")


@results_app.command("ls")
def list_command(
    results: options.Results = options.RESULTS,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the runs of a results folder; exit 1 if a record is damaged."""
    from encoder_bench.results.runs import inventory

    records, damaged = inventory(results)
    if json_output:
        rows = [_summary(record) for record in records]
        typer.echo(json.dumps({"runs": rows, "damaged": damaged}, indent=1))
    else:
        for record in records:
            mode = "joint " if record.joint else "frozen"
            scores = ", ".join(f"{name} {_value(record, name)}" for name in record.tasks)
            typer.echo(
                f"{record.run_id}  {record.created}  {record.encoder.name}  {mode}  "
                f"seed {record.seed}  {scores}"
            )
    for problem in damaged:
        typer.echo(f"damaged: {problem}", err=True)
    if damaged:
        raise typer.Exit(1)


@results_app.command("show")
def show_command(
    run: options.Run,
    results: options.Results = options.RESULTS,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Print a run: row, parts, training checks, recipe, hardware; the whole record with --json."""
    from encoder_bench.results.runs import find_run

    record = find_run(results, run)
    if json_output:
        typer.echo(record.model_dump_json(indent=1))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    from encoder_bench.results.export import record_sheet
    from encoder_bench.results.formats import print_table

    console = Console()
    print_table([record], console)
    console.print(Markdown(record_sheet(record)))


@results_app.command("rm")
def remove_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...")],
    results: options.Results = options.RESULTS,
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
    results: options.Results = options.RESULTS,
    debug: options.Debug = False,
) -> None:
    """Export all predictions as Parquet, or one run's scores as lm-eval style JSON."""
    from encoder_bench.base.files import write_text
    from encoder_bench.base.record import read_records
    from encoder_bench.results.export import export_harness, export_parquet
    from encoder_bench.results.runs import find_run

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
