"""Options that several commands share, declared once so that they read alike everywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

debug = os.environ.get("ENCODER_BENCH_DEBUG", "") not in ("", "0")
"""Whether errors show their traceback; `--debug` on any command sets it."""


def _set_debug(value: bool) -> bool:
    global debug
    debug = debug or value
    return value


Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        callback=_set_debug,
        is_eager=True,
        help="Show the traceback of an error (also ENCODER_BENCH_DEBUG=1).",
        rich_help_panel="Output",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress, warnings only.", rich_help_panel="Output"),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result as JSON on standard output.", rich_help_panel="Output"
    ),
]
Results = Annotated[
    Path,
    typer.Option(
        "--results",
        metavar="DIR",
        help="Folder of records, predictions and checkpoints.",
        rich_help_panel="Output",
    ),
]
