"""`encoder-bench cache build | ls | prune`: the feature cache of frozen encoders."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.cli import options
from encoder_bench.cli.run import parse_layers
from encoder_bench.pipeline.plan import DEFAULT_ENCODER, DEFAULT_TASKS, make_plan

app = typer.Typer(
    help="The feature cache of frozen encoders: fill it ahead, see what is in it, prune it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("build")
def build_command(
    encoder: Annotated[
        str,
        typer.Option("--encoder", "-e", metavar="NAME", help="As `run --encoder` takes it."),
    ] = DEFAULT_ENCODER,
    adapter: Annotated[
        str,
        typer.Option(
            metavar="quick|laptop|gvt|llava|FILE.toml",
            help="Its tasks to train on, encoder dtype and feature_storage decide what is kept.",
        ),
    ] = "quick",
    tasks: Annotated[
        str, typer.Option(metavar="NAME,...", help="Tasks whose test images are wanted.")
    ] = ",".join(DEFAULT_TASKS),
    data: Annotated[
        str, typer.Option(metavar="scenes|coco|DIR", help="As `run --data` takes it.")
    ] = "scenes",
    train_data: Annotated[
        str | None, typer.Option(metavar="scenes|coco|DIR", help="Where it is not --data.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(metavar="L[,L]", help="As `run --layer` takes it.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="As `run --resolution` takes it.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="exact|float16|int8",
            help="training.feature_storage; the error of the smaller ones is measured and told.",
        ),
    ] = None,
    cache_limit: Annotated[
        float | None,
        typer.Option(metavar="GIB", help="Most that may be added; else 80% of the free disk."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The encoder's checkpoint on disk.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let a Hub repository run its own code.")
    ] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Encode every image that a frozen run would show, ahead of it; what is there is not redone.

    Killed, it goes on from the last shard. Any projector, LLM, seed and task finds the features.
    """
    settings = {} if storage is None else {"training.feature_storage": storage}
    plan = make_plan(
        encoder=encoder,
        adapter=adapter,
        tasks=[name.strip() for name in tasks.split(",") if name.strip()],
        data=data,
        training_data=train_data,
        layer=parse_layers(layer),
        resolution=resolution,
        weights=weights,
        device=device,
        settings=settings,
        trust_remote_code=trust_remote_code,
    )
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.base.progress import make_reporter
    from encoder_bench.pipeline.build import build_encoder
    from encoder_bench.pipeline.run_data import read_data
    from encoder_bench.training.feature_cache import open_features

    reporter = make_reporter(quiet=quiet)
    images = read_data(plan, reporter).images()
    store = open_features(
        build_encoder(plan).requires_grad_(False),
        images,
        device=choose_device(plan.device),
        reporter=reporter,
        limit_bytes=None if cache_limit is None else int(cache_limit * 2**30),
        storage=plan.adapter.training.feature_storage,
    )
    kept = 0 if store is None else len(store)
    if kept < len(images):
        raise EncoderBenchError(
            f"features of {kept} of {len(images)} images are in the cache; the warning above says "
            "why not all"
        )
    typer.echo(f"{encoder}: features of {kept} images are in the cache")


@app.command("ls")
def list_command(debug: options.Debug = False) -> None:
    """List the encoders with cached features, the least recently used first."""
    from rich.console import Console
    from rich.table import Table

    from encoder_bench.training.feature_store import list_features

    entries = list_features()
    if not entries:
        typer.echo("the feature cache is empty")
        return
    shown = Table(box=None, header_style="bold")
    shown.add_column("encoder")
    shown.add_column("images", justify="right")
    shown.add_column("MiB", justify="right")
    for title in ("storage", "last used", "folder"):
        shown.add_column(title, overflow="fold")
    for entry in entries:
        used = datetime.datetime.fromtimestamp(entry.last_used).isoformat(" ", "minutes")
        size = f"{entry.size_bytes / 2**20:.1f}"
        shown.add_row(
            entry.encoder, str(entry.images), size, entry.storage, used, entry.folder.name
        )
    console = Console()
    console.print(shown)
    total = sum(entry.size_bytes for entry in entries) / 2**30
    console.print(f"{total:.2f} GiB in {entries[0].folder.parent}", soft_wrap=True)


@app.command("prune")
def prune_command(
    most: Annotated[float, typer.Option("--most", metavar="GIB", help="Keep at most so much.")] = 0,
    debug: options.Debug = False,
) -> None:
    """Remove cached features, least recently used encoders first; they can be made again."""
    from encoder_bench.training.feature_store import prune_features

    removed = prune_features(int(most * 2**30))
    for entry in removed:
        typer.echo(f"removed {entry.encoder}: {entry.images} images, {entry.size_bytes} bytes")
    if not removed:
        typer.echo("nothing to remove")
