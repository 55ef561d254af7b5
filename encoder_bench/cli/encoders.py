"""`encoder-bench encoders`: which encoders there are, and all that is known of one."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="List the encoders by name, or show one's card.",
    invoke_without_command=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
