"""`encoder-bench table`: the comparison table of all records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encoder_bench.cli import options
from encoder_bench.errors import RecordError


def table_command(
    results: options.Results = Path("results"),
    write: Annotated[
        bool,
        typer.Option("--write", help="Rewrite table.md, .csv, .tex and .html in the folder too."),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Print the comparison table, made from the records and nothing else."""
    from rich.console import Console

    from encoder_bench.results.record import read_records
    from encoder_bench.results.table import write_tables
    from encoder_bench.results.terminal import print_table

    records = read_records(results)
    if not records:
        raise RecordError(
            f"--results {results}: no run records yet; make one with `encoder-bench run`"
        )
    print_table(records, Console())
    if write:
        for path in write_tables(results):
            typer.echo(f"wrote {path}")
