"""`encoder-bench cache build | ls | prune`: features of frozen encoders, indexes of data."""

import contextlib
import datetime
from typing import Annotated

import typer

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.cli import options
from encoder_bench.cli.printing import grid
from encoder_bench.pipeline.plan import DEFAULT_ENCODER, make_plan

app = options.group("Cached features of frozen encoders and indexes of data: fill, list, prune.")
Storage = Annotated[
    str | None,
    options.how(
        metavar="exact|float16",
        help="training.feature_storage; the error of float16 is measured and reported.",
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
    weights: options.WeightsByName = None,
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Encode every image that a frozen run would use, in advance; cached images are skipped.

    Resumes if interrupted. The features serve every projector, LLM, seed and task.
    """
    plan = make_plan(
        encoder=encoder, adapter=adapter, tasks=options.listed(tasks), data=data,
        training_data=train_data, mixture=options.listed(mixture),
        layer=options.whole_numbers("--layer", layer), resolution=resolution,
        weights=options.weights_by_name([encoder], weights).get(encoder),
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
    """List cached features and indexes of data, the least recently used first."""
    from rich.console import Console
    from rich.text import Text

    from encoder_bench.base.paths import cache_dir, list_features
    from encoder_bench.data.index import list_indexes

    entries = {"features": list_features(), "indexes": list_indexes()}
    for title, of in entries.items():
        rows = [
            (
                Text(entry.of, overflow="fold"),
                datetime.datetime.fromtimestamp(entry.last_used).isoformat(" ", "minutes"),
                f"{entry.items:,}",
                f"{entry.size_bytes / 2**20:,.1f}",
            )
            for entry in of
        ]
        number = "images" if title == "features" else "rows"
        if rows:
            Console().print(grid((title, "last used", number, "MiB"), rows, left=2))
    total = sum(entry.size_bytes for of in entries.values() for entry in of) / 2**30
    size = f"{total:.2f} GiB" if any(entries.values()) else "nothing is cached"
    typer.echo(f"{size} in {cache_dir()}")


@app.command("prune")
def prune_command(
    keep: Annotated[
        float, typer.Option("--keep", "--most", metavar="GIB", help="How much to keep.")
    ] = 0,
    debug: options.Debug = False,
) -> None:
    """Remove features and indexes, least recently used first; they can be computed again."""
    from encoder_bench.base.paths import list_features, prune
    from encoder_bench.data.index import list_indexes

    removed = prune([*list_features(), *list_indexes()], int(keep * 2**30))
    for entry in removed:
        typer.echo(f"removed {entry.of}: {entry.size_bytes / 2**20:,.1f} MiB")
    if not removed:
        typer.echo("nothing to remove")
