"""`encoder-bench table`: the comparison table of all records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.cli import options

if TYPE_CHECKING:
    from encoder_bench.base.record import RunRecord

_FORMATS = ("terminal", "md", "csv", "tex", "html", "json")


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
        str | None, typer.Option(metavar="reported", help="The published figures beside ours.")
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
        str,
        typer.Option(
            "--format", metavar="md|csv|tex|html|json", help="Print in a format, and nothing else."
        ),
    ] = "terminal",
    debug: options.Debug = False,
) -> None:
    """Print the comparison table, made from the records and nothing else.

    Best bold, second best underlined, ties with the best marked, blind baselines in italics.
    """
    from encoder_bench.base.record import require_records

    if format_ not in _FORMATS:
        raise UnknownNameError("format", format_, _FORMATS)
    extra = options.listed(columns)
    records = require_records(results)
    if compare is not None:
        written = _print_reported(compare, results, records, format_, write=write)
    else:
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
    format_: str,
    *,
    write: bool,
    sort: str | None,
    contains: str | None,
) -> list[Path]:
    from encoder_bench.results.contrasts import best_ties, over_twins, usual_ties
    from encoder_bench.results.formats import FORMATS, print_page, write_tables
    from encoder_bench.results.page import table_page
    from encoder_bench.results.table import arranged, build_tables

    found, reason = None, None
    if ties is None:
        found, reason = usual_ties(results, records)
    elif ties:
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
    name: str, results: Path, records: list[RunRecord], format_: str, *, write: bool
) -> list[Path]:
    from encoder_bench.results.formats import print_page, write_texts
    from encoder_bench.results.reported import reported_pages, reported_texts

    if name != "reported":
        raise UnknownNameError("comparison", name, ["reported"])
    if format_ == "terminal":
        for page in reported_pages(records):
            print_page(page)
    else:
        typer.echo(reported_texts(records)[format_], nl=False)
    return write_texts(results / "reported", reported_texts(records)) if write else []
