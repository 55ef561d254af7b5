"""`encoder-bench encoders`: which encoders there are, and all that is known of one."""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from encoder_bench.cli import options

app = typer.Typer(
    help="List the encoders by name, or show one's card.",
    invoke_without_command=True,
    rich_markup_mode="rich",
    context_settings=options.HELP_NAMES,
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
    from encoder_bench.encoders.registry import encoder_rows

    rows = encoder_rows(family, supervision, max_parameters, max_gflops)
    if json_output:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    cells = {name: [shown(row) for row in rows] for name, shown in _COLUMNS.items()}
    widths = {n: 2 + max(map(len, (n, *texts))) for n, texts in cells.items()}
    kept = ["name", "weights"]
    for name in (name for name in _COLUMNS if name not in kept):
        if sum(widths[each] for each in (*kept, name)) - 2 <= console.width:
            kept.append(name)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in (name for name in _COLUMNS if name in kept):
        table.add_column(name, no_wrap=True, justify="right" if name in _NUMBERS else "left")
    for place in range(len(rows)):
        table.add_row(*(Text(cells[name][place]) for name in _COLUMNS if name in kept))
    Console(width=max(console.width, sum(widths[name] for name in kept))).print(table)
    lacking = ", ".join(name for name in _COLUMNS if name not in kept)
    narrow = f" A wider terminal (or --json) also shows: {lacking}." if lacking else ""
    console.print(
        f"{len(rows)} encoders; ? is known once it is loaded.{narrow} `encoders show NAME` prints "
        "all sources. Besides these names: timm:NAME, open_clip:ARCH/PRETRAINED, hf:REPO[@REV], "
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
    from encoder_bench.encoders.registry import encoder_card

    card = encoder_card(name)
    if json_output:
        typer.echo(json.dumps(card, indent=1))
        return
    for number, source in enumerate(card["sources"]):
        typer.echo(f"{'source' if number == 0 else 'also':<{_WIDTH}}  {source}")
    for label, key in _CARD:
        if key in card or key == "weights_memory_bytes_float32":
            typer.echo(f"{label:<{_WIDTH}}  {_shown(key, card)}")


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "name": lambda row: str(row["name"]),
    "weights": lambda row: re.sub(r"@https?://.*/", "@", row["sources"][0]),
    "params": lambda row: _millions(row["parameters"]),
    "GFLOPs": lambda row: "?" if row["gflops"] is None else f"{row['gflops']:.1f}",
    "px": lambda row: str(row["resolution"] or "?"),
    "tokens": lambda row: str(row["patch_tokens"] or "?"),
    "supervision": lambda row: str(row["supervision"]),
    "encoder": lambda row: str(row["encoder"]),
    "pretraining": lambda row: str(row["pretraining"]),
}
_NUMBERS = frozenset({"params", "GFLOPs", "px", "tokens"})
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
