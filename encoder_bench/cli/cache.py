"""`encoder-bench cache | setup`: what this machine keeps: features, indexes, copies, CoreNLP."""

import contextlib
import datetime
from pathlib import Path
from typing import Annotated

import typer

from encoder_bench.base.errors import DataError, EncoderBenchError
from encoder_bench.base.paths import cache_dir, list_features, list_language_models, prune
from encoder_bench.base.progress import make_reporter
from encoder_bench.cli import options
from encoder_bench.cli.printing import print_grid
from encoder_bench.pipeline.plan import DEFAULT_ENCODER, make_plan

cache_app = options.group(
    "Cached features of frozen encoders and indexes of data: fill, list, prune."
)
setup_app = options.group("Install what pip cannot: CoreNLP for SPICE.")
Storage = Annotated[
    str | None,
    options.how(
        metavar="exact|float16",
        help="training.feature_storage; the error of float16 is measured and reported.",
    ),
]


@cache_app.command("build")
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


@cache_app.command("ls")
def list_command(debug: options.Debug = False) -> None:
    """List features, indexes of data and copies of GGUF files, the least recently used first."""
    from encoder_bench.data.index import list_indexes

    kinds = {
        ("features", "images"): list_features(),
        ("indexes", "rows"): list_indexes(),
        ("language models", "files"): list_language_models(),
    }
    for (title, number), entries in kinds.items():
        rows = []
        for entry in entries:
            used = datetime.datetime.fromtimestamp(entry.last_used).isoformat(" ", "minutes")
            size = f"{entry.size_bytes / 2**20:,.1f}"
            rows.append((entry.of, used, f"{entry.items:,}", size))
        if rows:
            print_grid((title, "last used", number, "MiB"), rows, left=2)
    sizes = [entry.size_bytes for entries in kinds.values() for entry in entries]
    kept = f"{sum(sizes) / 2**30:.2f} GiB" if sizes else "nothing is cached"
    typer.echo(f"{kept} in {cache_dir()}")


@cache_app.command("prune")
def prune_command(
    keep: Annotated[
        float, typer.Option("--keep", "--most", metavar="GIB", help="How much to keep.")
    ] = 0,
    debug: options.Debug = False,
) -> None:
    """Remove features, indexes and copies of GGUF files, least recently used first.

    They can be computed again.
    """
    from encoder_bench.data.index import list_indexes

    entry = None
    found = [*list_features(), *list_indexes(), *list_language_models()]
    for entry in prune(found, int(keep * 2**30)):
        typer.echo(f"removed {entry.of}: {entry.size_bytes / 2**20:,.1f} MiB")
    if entry is None:
        typer.echo("nothing to remove")


@setup_app.command("spice")
def spice_command(
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE|DIR",
            help="stanford-corenlp-full-2015-12-09.zip, or a folder with it or its jars; else "
            "fetched through Maven, or without Maven from its authors (385 MB).",
        ),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="What the archive must have, if you know it.")
    ] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Install Stanford CoreNLP 3.6.0 into the cache, so that the table has SPICE, and try it.

    Maven (`mvn`, as it is set up here) compares what it fetches with the checksums that its
    repository publishes. No checksum of the archive is published. The sha256 of what was installed
    is printed, kept and compared before every use.
    """
    from encoder_bench.metrics.java import find_java
    from encoder_bench.metrics.spice import ARTIFACTS, install, spice_folder, spice_scores

    if source is not None and not source.exists():
        raise DataError(f"--from {source}: no such file or folder")
    java, version = find_java()
    reporter = make_reporter(quiet=quiet)
    for name, digest in install(source, reporter, sha256=sha256).items():
        if name in ARTIFACTS:
            typer.echo(f"{name}  sha256:{digest}")
    with reporter.phase("first caption", 1, "caption") as phase:
        (score,) = spice_scores(["a brown dog runs"], [("a brown dog runs",)])
        phase.advance()
    typer.echo(
        f"installed in {spice_folder()}; Java {version} ({java}) runs it: {score:.1f} of 1.0"
    )
