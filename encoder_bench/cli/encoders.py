"""`encoder-bench encoders`: which encoders there are, and all that is known of one."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from encoder_bench.cli import options

app = typer.Typer(
    help="List the encoders by name, or show one's card.",
    invoke_without_command=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def list_command(
    context: typer.Context,
    family: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this family: dinov2, clip...")
    ] = None,
    supervision: Annotated[
        str | None, typer.Option(metavar="fully|weakly|self", help="Only this supervision.")
    ] = None,
    max_parameters: Annotated[
        int | None, typer.Option(metavar="N", help="Only encoders with at most N parameters.")
    ] = None,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the encoders by name, or show one's card."""
    if context.invoked_subcommand is not None:
        return
    from encoder_bench.encoders.listing import encoder_rows

    rows = encoder_rows(family, supervision, max_parameters)
    if json_output:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "encoder", "supervision", "pretraining", "params", "tokens"):
        table.add_column(column, no_wrap=column not in ("encoder", "pretraining"))
    for row in rows:
        table.add_row(
            row["name"],
            row["encoder"],
            row["supervision"],
            row["pretraining"],
            _millions(row["parameters"]),
            str(row["patch_tokens"] or "?"),
        )
    console = Console()
    console.print(table)
    console.print(
        "`encoders show NAME` prints source and weights. Besides these names: timm:NAME, "
        "open_clip:ARCH/PRETRAINED, hf:REPO[@REV], dir:PATH, or A+B.",
        markup=False,
        highlight=False,
    )


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="A name of the list, or a general form.")],
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Print one encoder's card: source, architecture, data, licence, paper."""
    from encoder_bench.encoders.listing import encoder_card

    card = encoder_card(name)
    if json_output:
        typer.echo(json.dumps(card, indent=1))
        return
    width = max(len(key) for key in card)
    for key, value in card.items():
        typer.echo(f"{key.replace('_', ' '):<{width}}  {_shown(value)}")


def _millions(parameters: int | None) -> str:
    return "?" if parameters is None else f"{parameters / 1e6:.1f}M"


def _shown(value: Any) -> str:
    return "known once it is loaded" if value is None else str(value)
