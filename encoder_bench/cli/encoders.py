"""`encoder-bench encoders`: which encoders there are, and all that is known of one."""

import json
import re
import shutil
import textwrap
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
    "display_name", "family", "supervision", "pretraining_data", "pretraining_images", "weights",
    "revision", "parameters", "weights_memory_bytes_float32", "gflops", "width", "depth", "patch",
    "resolution", "tokens", "prefix_tokens", "licence", "paper",
)  # fmt: skip
_LABELS = {
    "display_name": "encoder",
    "weights_memory_bytes_float32": "memory for the weights",
    "gflops": "GFLOPs per image",
    "depth": "blocks",
    "tokens": "patch tokens",
}
"""Of the facts that a card does not call by their own name."""
_WIDTH = 22


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
    cells = {name: [name, *map(shown, rows)] for name, shown in _COLUMNS.items()}
    widths = {name: max(map(len, column)) for name, column in cells.items()}
    kept, width = ["name", "weights"], shutil.get_terminal_size().columns
    for name in _COLUMNS:
        if name not in kept and sum(2 + widths[each] for each in (*kept, name)) - 2 <= width:
            kept.append(name)
    columns = []
    for name in (name for name in _COLUMNS if name in kept):
        aligned = str.rjust if name in _NUMBERS else str.ljust
        columns.append([aligned(text, widths[name]) for text in cells[name]])
    for number, line in enumerate(zip(*columns, strict=True)):
        typer.secho("  ".join(line).rstrip(), bold=number == 0)
    lacking = ", ".join(name for name in _COLUMNS if name not in kept)
    narrow = f" A wider terminal (or --json) also shows: {lacking}." if lacking else ""
    note = (
        f"{len(rows)} encoders; ? is known once it is loaded.{narrow} `encoders show NAME` prints "
        "all sources. Besides these names: timm:NAME, open_clip:ARCH/PRETRAINED, hf:REPO[@REV], "
        "dir:PATH, NAME@SOURCE, A+B, or random:NAME (fresh weights)."
    )
    typer.echo(textwrap.fill(note, width, break_long_words=False, break_on_hyphens=False))


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
        typer.echo(f"{'also' if number else 'source':<{_WIDTH}}  {source}")
    for key in _CARD:
        if key in card or key == "weights_memory_bytes_float32":
            label = _LABELS.get(key, key.replace("_", " "))
            typer.echo(f"{label:<{_WIDTH}}  {_shown(key, card)}")


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "name": lambda row: str(row["name"]),
    "weights": lambda row: re.sub(r"@https?://.*/", "@", row["sources"][0]),
    "params": lambda row: "?" if row["parameters"] is None else f"{row['parameters'] / 1e6:.1f}M",
    "GFLOPs": lambda row: "?" if row["gflops"] is None else f"{row['gflops']:.1f}",
    "px": lambda row: str(row["resolution"] or "?"),
    "tokens": lambda row: str(row["patch_tokens"] or "?"),
    "supervision": lambda row: str(row["supervision"]),
    "encoder": lambda row: str(row["encoder"]),
    "pretraining": lambda row: str(row["pretraining"]),
}
_NUMBERS = frozenset({"params", "GFLOPs", "px", "tokens"})


def _shown(key: str, card: dict[str, Any]) -> str:
    value = card.get(key)
    if value is None:
        hierarchical = key == "depth" and card["width"] is not None
        return "none (hierarchical)" if hierarchical else "known once it is loaded"
    return _FORMATS.get(key, str)(value)


_FORMATS: dict[str, Callable[[Any], str]] = {
    "parameters": "{:,}".format,
    "weights_memory_bytes_float32": lambda size: (
        f"{size / 2**20:,.0f} MiB in float32, half of it in bfloat16"
    ),
    "gflops": lambda number: (
        f"{number:,} (a multiply-add counted as two; papers often print {number / 2:,.2f})"
    ),
    "paper": lambda paper: " + ".join(
        number if number == "unknown" else f"arXiv:{number}" for number in paper.split(" + ")
    ),
}
