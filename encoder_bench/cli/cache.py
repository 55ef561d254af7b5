"""`encoder-bench cache build | ls | prune`: the feature cache of frozen encoders."""

from __future__ import annotations

import contextlib
import datetime
from typing import Annotated

import typer

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.cli import options
from encoder_bench.cli.printing import grid
from encoder_bench.pipeline.plan import DEFAULT_ENCODER, make_plan

app = typer.Typer(
    help="The feature cache of frozen encoders: fill it ahead, list it, prune it.",
    no_args_is_help=True,
    context_settings=options.HELP_NAMES,
)


Storage = Annotated[
    str | None,
    typer.Option(
        metavar="exact|float16",
        help="training.feature_storage; the error of float16 is measured and reported.",
        rich_help_panel=options.HOW,
    ),
]


@app.command("build")
def build_command(
    encoder: options.Encoder = DEFAULT_ENCODER,
    adapter: options.Adapter = "quick",
    tasks: options.Tasks = options.DEFAULT_TASKS,
    data: options.Data = "scenes",
    train_data: options.TrainData = None,
    mixture: options.Mixture = None,
    layer: options.Layer = None,
    resolution: options.Resolution = None,
    storage: Storage = None,
    cache_limit: options.CacheLimit = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Encode every image that a frozen run would use, ahead of it; cached images are skipped.

    Resumes from the last shard if interrupted. Any projector, LLM, seed and task uses the features.
    """
    plan = make_plan(
        encoder=encoder, adapter=adapter, tasks=options.listed(tasks), data=data,
        training_data=train_data, mixture=options.listed(mixture),
        layer=options.whole_numbers("--layer", layer), resolution=resolution, weights=weights,
        settings={} if storage is None else {"training.feature_storage": storage},
        device=device, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.base.progress import make_reporter
    from encoder_bench.pipeline.build import build_encoder
    from encoder_bench.pipeline.data import read_data
    from encoder_bench.training.feature_cache import open_features

    reporter = make_reporter(quiet=quiet)
    images = read_data(plan, reporter).images()
    store = open_features(
        build_encoder(plan).requires_grad_(False),
        images,
        device=choose_device(plan.device),
        reporter=reporter,
        limit_bytes=options.gibibytes(cache_limit),
        storage=plan.adapter.training.feature_storage,
    )
    with contextlib.closing(store):
        if store.missing():
            store.fill()
            reporter.note(store.summary())
    kept = len(images) - len(store.missing())
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

    from encoder_bench.base.paths import cache_dir
    from encoder_bench.training.feature_shards import list_features

    entries = list_features()
    if not entries:
        typer.echo(f"the feature cache is empty ({cache_dir('features')})")
        return
    rows = [
        (
            entry.encoder,
            entry.storage,
            datetime.datetime.fromtimestamp(entry.last_used).isoformat(" ", "minutes"),
            entry.folder.name,
            str(entry.images),
            f"{entry.size_bytes / 2**20:.1f}",
        )
        for entry in entries
    ]
    columns = ("encoder", "storage", "last used", "folder", "images", "MiB")
    Console().print(grid(columns, rows, left=4))
    total = sum(entry.size_bytes for entry in entries) / 2**30
    typer.echo(f"{total:.2f} GiB in {entries[0].folder.parent}")


@app.command("prune")
def prune_command(
    keep: Annotated[
        float, typer.Option("--keep", "--most", metavar="GIB", help="How much to keep.")
    ] = 0,
    debug: options.Debug = False,
) -> None:
    """Remove cached features, least recently used encoders first; they can be computed again."""
    from encoder_bench.training.feature_shards import prune_features

    removed = prune_features(int(keep * 2**30))
    for entry in removed:
        typer.echo(f"removed {entry.encoder}: {entry.images} images, {entry.size_bytes} bytes")
    if not removed:
        typer.echo("nothing to remove")
