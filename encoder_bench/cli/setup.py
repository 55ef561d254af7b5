"""`encoder-bench setup`: what cannot be installed with pip."""

from pathlib import Path
from typing import Annotated

import typer

from encoder_bench.cli import options

app = options.group("Install what pip cannot: CoreNLP for SPICE.")


@app.callback()
def _setup() -> None:
    """Install what pip cannot: CoreNLP for SPICE."""


@app.command("spice")
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
    from encoder_bench.base.errors import DataError
    from encoder_bench.base.progress import make_reporter
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
