"""`encoder-bench contrasts`: every comparison that a results folder allows, tested."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoder_bench.base.errors import EncoderBenchError, RecordError
from encoder_bench.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from encoder_bench.results.contrasts import Contrast

EPILOG = (
    "Rows are averaged over their seeds sample by sample, so p is about the samples, not about "
    "seeds that were not run; the table's ± holds both."
)


def contrasts_command(
    results: options.Results = Path("results"),
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE.csv", help="Write them as CSV too."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="blind|joint|encoders", help="One of the three families."),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Test every row against its best blind control, joint against frozen, all encoder pairs.

    Paired differences with 95% intervals clustered on images, and p corrected by Holm's method.
    """
    from rich.console import Console

    from encoder_bench.base.files import write_text
    from encoder_bench.base.record import read_records
    from encoder_bench.results.contrasts import BLIND, ENCODERS, JOINT, contrast_frame, contrasts

    families = {"blind": BLIND, "joint": JOINT, "encoders": ENCODERS}
    if only is not None and only not in families:
        raise EncoderBenchError(f"--only {only}: give blind, joint or encoders")
    records = read_records(results)
    if not records:
        raise RecordError(f"--results {results}: no run records yet")
    found = contrasts(results, records)
    console = Console()
    for setting in dict.fromkeys(each.setting for each in found):
        console.print(setting, style="bold", markup=False, highlight=False)
        for name, family in families.items():
            shown = [each for each in found if (each.setting, each.family) == (setting, family)]
            if shown and only in (None, name):
                console.print(_grid(family, shown))
    if write is not None:
        write_text(write, contrast_frame(found).to_csv(index=False, lineterminator="\n"))
        typer.echo(f"wrote {write}")


def _grid(family: str, found: list[Contrast]) -> Table:
    from rich.table import Table

    grid = Table(title=family, title_justify="left", box=None, header_style="bold")
    for header in ("mode", "column", "A", "B"):
        grid.add_column(header)
    for header in ("A", "B", "A - B", "95% interval", "p (Holm)"):
        grid.add_column(header, justify="right")
    for each in found:
        style = "" if each.p_holm < 0.05 else "dim"
        grid.add_row(
            each.mode,
            each.column,
            each.a,
            each.b,
            f"{each.score_a:.1f}",
            f"{each.score_b:.1f}",
            f"{each.difference.value:+.1f}",
            each.difference.interval(1),
            f"{each.p_holm:.3f}",
            style=style,
        )
    return grid
