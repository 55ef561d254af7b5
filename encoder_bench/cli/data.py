"""`encoder-bench data`: look at a data folder before a run does."""

from __future__ import annotations

from typing import Annotated

import typer

from encoder_bench.cli import options
from encoder_bench.errors import EncoderBenchError

app = typer.Typer(
    help="Check a data folder, or draw the embedded one.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("check")
def check_command(
    data: Annotated[str, typer.Argument(metavar="scenes|coco|DIR")] = "scenes",
    images: Annotated[
        bool, typer.Option("--images", help="Decode every image too; minutes on large sets.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Read every task's training and test samples, as a run would; exit 1 where one fails."""
    from encoder_bench.data.check import check_folder
    from encoder_bench.data.folder import open_data
    from encoder_bench.plan import DEFAULT_TASKS
    from encoder_bench.progress import make_reporter
    from encoder_bench.recipes import load_task

    reporter = make_reporter(quiet=False)
    folder = open_data(data, reporter)
    tasks = {name: load_task(name) for name in DEFAULT_TASKS}
    result = check_folder(folder, tasks, decode_images=images, reporter=reporter)
    for line in result.lines:
        typer.echo(line)
    if result.problems:
        raise EncoderBenchError(f"{folder.root}: {len(result.problems)} problems, listed above")
