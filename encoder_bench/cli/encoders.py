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


_CARD = (
    ("encoder", "display_name"),
    ("family", "family"),
    ("supervision", "supervision"),
    ("pretraining data", "pretraining_data"),
    ("pretraining images", "pretraining_images"),
    ("weights", "weights"),
    ("revision", "revision"),
    ("parameters", "parameters"),
    ("memory for the weights", "weights_memory_bytes_float32"),
    ("GFLOPs per image", "gflops"),
    ("width", "width"),
    ("blocks", "depth"),
    ("patch", "patch"),
    ("resolution", "resolution"),
    ("patch tokens", "tokens"),
    ("prefix tokens", "prefix_tokens"),
    ("licence", "licence"),
    ("paper", "paper"),
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
    max_gflops: Annotated[
        float | None,
        typer.Option(metavar="G", help="Only encoders with at most G GFLOPs per image."),
    ] = None,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the encoders by name, or show one's card."""
    if context.invoked_subcommand is not None:
        return
    from encoder_bench.encoders.listing import encoder_rows

    rows = encoder_rows(family, supervision, max_parameters, max_gflops)
    if json_output:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    extra = ["encoder"] * (console.width >= _MIN_WIDTH_NAMES)
    extra += ["pretraining"] * (console.width >= _MIN_WIDTH_DATA)
    table = Table(box=None, pad_edge=False)
    for column in ("name", *extra, "supervision"):
        table.add_column(column, no_wrap=True)
    for column in ("params", "GFLOPs", "px", "tokens"):
        table.add_column(column, no_wrap=True, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            *(row[column] for column in extra),
            row["supervision"],
            _millions(row["parameters"]),
            "?" if row["gflops"] is None else f"{row['gflops']:.1f}",
            str(row["resolution"] or "?"),
            str(row["patch_tokens"] or "?"),
        )
    console.print(table)
    console.print(
        f"{len(rows)} encoders; ? is known once it is loaded. `encoders show NAME` prints sources "
        "and weights. Besides these names: timm:NAME, open_clip:ARCH/PRETRAINED, hf:REPO[@REV], "
        "dir:PATH, NAME@SOURCE, A+B, or random:NAME (fresh weights).",
        markup=False,
        highlight=False,
    )


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="A name of the list, or a general form.")],
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Print one encoder's card: sources, architecture, data, licence, paper."""
    from encoder_bench.encoders.listing import encoder_card

    card = encoder_card(name)
    if json_output:
        typer.echo(json.dumps(card, indent=1))
        return
    for number, source in enumerate(card["sources"]):
        typer.echo(f"{'source' if number == 0 else 'also':<{_WIDTH}}  {source}")
    for label, key in _CARD:
        if key in card or key == "weights_memory_bytes_float32":
            typer.echo(f"{label:<{_WIDTH}}  {_shown(key, card)}")


_MIN_WIDTH_NAMES, _MIN_WIDTH_DATA = 105, 170
_WIDTH = max(len(label) for label, _ in _CARD)


def _millions(parameters: int | None) -> str:
    return "?" if parameters is None else f"{parameters / 1e6:.1f}M"


def _shown(key: str, card: dict[str, Any]) -> str:
    value = card.get(key)
    if value is None:
        hierarchical = key == "depth" and card["width"] is not None
        return "none (hierarchical)" if hierarchical else "known once it is loaded"
    if key == "parameters":
        return f"{value:,}"
    if key == "weights_memory_bytes_float32":
        return f"{value / 2**20:,.0f} MiB in float32, half of it in bfloat16"
    if key == "gflops":
        return f"{value:,} (a multiply-add counted as two; papers often print {value / 2:,.2f})"
    if key == "paper":
        return " + ".join(f"arXiv:{number}" for number in str(value).split(" + "))
    return str(value)
