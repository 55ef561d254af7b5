"""`encoder-bench table`: the comparison table of all records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoder_bench.cli import options
from encoder_bench.errors import RecordError

if TYPE_CHECKING:
    from rich.console import Console

    from encoder_bench.results.record import RunRecord


def table_command(
    results: options.Results = Path("results"),
    write: Annotated[
        bool,
        typer.Option("--write", help="Rewrite table.md, .csv, .tex and .html in the folder too."),
    ] = False,
    ties: Annotated[
        bool,
        typer.Option("--ties", help="Mark rows not significantly worse than the best (Holm)."),
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(metavar="reported", help="Print the published figures beside ours."),
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="More columns: lift, parameters, gflops, device-hours, visual-tokens, "
            "parse-failures, training-seconds, peak-memory, throughput.",
        ),
    ] = "",
    debug: options.Debug = False,
) -> None:
    """Print the comparison table, made from the records and nothing else."""
    from rich.console import Console

    from encoder_bench.results.record import read_records
    from encoder_bench.results.table import write_tables
    from encoder_bench.results.terminal import print_table
    from encoder_bench.results.ties import best_ties

    records = read_records(results)
    if not records:
        raise RecordError(
            f"--results {results}: no run records yet; make one with `encoder-bench run`"
        )
    extra = [name.strip() for name in columns.split(",") if name.strip()]
    console = Console()
    if compare is not None:
        _print_reported(compare, records, console)
        return
    groups = best_ties(results, records) if ties else {}
    print_table(records, console, extra=extra, ties=groups)
    if write:
        for path in write_tables(results, extra=extra, ties=ties):
            typer.echo(f"wrote {path}")


def _print_reported(name: str, records: list[RunRecord], console: Console) -> None:
    from encoder_bench.errors import UnknownNameError
    from encoder_bench.results.reported_page import lay_out_comparison
    from encoder_bench.results.terminal import print_page

    if name != "reported":
        raise UnknownNameError("comparison", name, ["reported"])
    for page in lay_out_comparison(records):
        print_page(page, console)
