"""`encoder-bench check | baseline`: the gate that scores must pass, and what it compares with."""

import math
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.progress import make_reporter
from encoder_bench.base.record import read_records
from encoder_bench.cli import options

EPILOG = (
    "--rerun quick takes about a minute on two cores and needs no fresh runs: recorded answers are "
    "scored again, and kept models answer again."
)

baseline_app = options.group("The accepted scores that `check` compares with.")
BaselineFolder = Annotated[
    Path, typer.Option("--baseline", metavar="DIR", help="The baseline's folder.")
]


def check_command(
    baseline: Annotated[Path, typer.Argument(help="A folder that `baseline accept` made.")],
    results: options.Results = options.RESULTS,
    rerun: Annotated[
        Literal["quick", "full"] | None,
        typer.Option(
            help="Make what is compared first: the cheap parts of every run, or every run again "
            "into --results. Without it, the runs in --results are compared.",
        ),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(metavar="POINTS", help="Largest loss that may pass.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Skip accepted runs that were not run again.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="--rerun: where the data are, if they are a folder."),
    ] = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Fail (exit status 1) where scores are worse than the accepted ones. For CI.

    Prints Markdown: every failure and the samples that flipped; under GitHub Actions also as a step
    summary.
    """
    from encoder_bench.gate.check import check, rerun_full, rerun_quick

    _check_margin(margin)
    if rerun and partial:
        raise EncoderBenchError("--partial is for runs in --results; a rerun chooses its part")
    reporter = make_reporter(quiet=quiet)
    if rerun == "quick":
        result = rerun_quick(baseline, reporter, margin=margin, data=data, device=device)
    elif rerun == "full":
        result = rerun_full(baseline, results, reporter, margin=margin, data=data, device=device)
    else:
        result = check(baseline, results, margin=margin, partial=partial)
    typer.echo(result.markdown(text=str))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as stream:
            stream.write(result.markdown())
    raise typer.Exit(0 if result.passed else 1)


def _check_margin(margin: float | None) -> None:
    if margin is not None and not 0 < margin < math.inf:
        raise EncoderBenchError(f"--margin {margin:g}: give points above 0")


@baseline_app.command("accept")
def accept_command(
    reason: Annotated[str, typer.Option(help="Why, for the baseline's history.")],
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...", help="Ids, their beginnings, ENCODER/MODE or ENCODER/MODE/SEED."
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every run of --results, the newest of each identity.")
    ] = False,
    keep_weights: Annotated[
        bool,
        typer.Option(
            "--keep-weights",
            help="Keep the trained weights too, for `check --rerun quick`; a few runs are enough.",
        ),
    ] = False,
    folder: BaselineFolder = Path("results/baseline"),
    margin: Annotated[
        float | None, typer.Option(metavar="POINTS", help="A new margin; kept otherwise.")
    ] = None,
    results: options.Results = options.RESULTS,
    debug: options.Debug = False,
) -> None:
    """Put runs into the baseline, in place of those of the same identity."""
    from encoder_bench.gate.baseline import accept, check_distinct, identity, read_baseline

    _check_margin(margin)
    if every and runs:
        raise EncoderBenchError("--all takes every run; name none beside it")
    found = read_records(results) if every else []
    check_distinct(found)
    newest = {identity(record): record.run_id for record in found}
    names = list(newest.values()) if every else runs or []
    before = read_baseline(folder).runs if (folder / "baseline.json").is_file() else {}
    known = accept(folder, results, names, reason=reason, margin=margin, keep_weights=keep_weights)
    for name, run in before.items():
        if known.runs[name] != run:
            typer.echo(f"{known.runs[name]} replaces {run}: {name}")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    typer.echo(
        f"wrote {folder}: {len(known.runs)} runs, {size / 2**20:.1f} MiB, margin {known.margin:g}"
    )


@baseline_app.command("ls")
def list_command(
    folder: BaselineFolder = Path("results/baseline"), debug: options.Debug = False
) -> None:
    """List the accepted runs, and when and why they were accepted."""
    from encoder_bench.gate.baseline import baseline_records, read_baseline, weights_folder

    known = read_baseline(folder)
    for name, record in baseline_records(folder, known).items():
        kept = "  weights kept" if weights_folder(folder, record).is_dir() else ""
        typer.echo(f"{record.run_id}  {name}{kept}")
    for entry in known.history:
        typer.echo(f"{entry.when}  {len(entry.runs)} runs: {entry.reason}")
