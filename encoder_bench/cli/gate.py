"""`encoder-bench check | baseline`: the gate that scores must pass, and what it compares with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoder_bench.base.errors import EncoderBenchError, UnknownNameError
from encoder_bench.cli import options

if TYPE_CHECKING:
    from encoder_bench.gate.verdicts import CheckResult

EPILOG = (
    "--rerun quick takes minutes on two cores and needs no fresh runs: recorded and awkward "
    "answers are scored again, kept models answer again, and training begins again."
)
_RERUNS = ("quick", "full")

baseline_app = typer.Typer(
    help="The accepted scores that `check` compares with.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)


def check_command(
    baseline: Annotated[Path, typer.Argument(help="A folder that `baseline accept` made.")],
    results: options.Results = Path("results"),
    rerun: Annotated[
        str | None,
        typer.Option(
            metavar="quick|full",
            help="Make what is compared first: the cheap parts of every run, or every run again "
            "into --results. Without it, the runs in --results are compared.",
        ),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(metavar="POINTS", help="Largest loss that may pass.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Pass over accepted runs that were not run again.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="--rerun: where the data are, if they are a folder."),
    ] = None,
    device: Annotated[str, typer.Option(help="--rerun: auto, cpu, cuda, mps.")] = "auto",
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML too.")] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Fail (exit status 1) where scores are worse than the accepted ones. For CI.

    Prints every failure and the samples that flipped; under GitHub Actions also a step summary.
    """
    from encoder_bench.gate import report as regression_report

    if rerun is not None and rerun not in _RERUNS:
        raise UnknownNameError("rerun", rerun, _RERUNS)
    if rerun and partial:
        raise EncoderBenchError("--partial is for runs in --results; a rerun chooses its part")
    result = _checked(baseline, results, rerun, margin, partial, data, device, quiet)
    for line in regression_report.lines(result):
        typer.echo(line)
    if junit is not None:
        regression_report.write_junit(result, junit)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        regression_report.append_step_summary(result, Path(summary))
    raise typer.Exit(result.exit_code)


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
    folder: Annotated[
        Path, typer.Option("--baseline", metavar="DIR", help="The baseline's folder.")
    ] = Path("results/baseline"),
    margin: Annotated[
        float | None, typer.Option(metavar="POINTS", help="A new margin; kept otherwise.")
    ] = None,
    results: options.Results = Path("results"),
    debug: options.Debug = False,
) -> None:
    """Take runs into the baseline, in place of those of the same identity."""
    from encoder_bench.base.record import read_records
    from encoder_bench.gate.baseline import accept, identity

    if every and runs:
        raise EncoderBenchError("--all takes every run; name none beside it")
    newest = {identity(record): record.run_id for record in read_records(results)} if every else {}
    names = list(newest.values()) if every else runs or []
    known = accept(folder, results, names, reason=reason, margin=margin, keep_weights=keep_weights)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    typer.echo(
        f"wrote {folder}: {len(known.runs)} runs, {size / 2**20:.1f} MiB, margin {known.margin:g}"
    )


@baseline_app.command("ls")
def list_command(
    folder: Annotated[
        Path, typer.Option("--baseline", metavar="DIR", help="The baseline's folder.")
    ] = Path("results/baseline"),
    debug: options.Debug = False,
) -> None:
    """List the accepted runs, and when and why they were accepted."""
    from encoder_bench.gate.baseline import baseline_records, read_baseline, weights_folder

    known = read_baseline(folder)
    for name, record in baseline_records(folder, known).items():
        kept = "  weights kept" if weights_folder(folder, record).is_dir() else ""
        typer.echo(f"{record.run_id}  {name}{kept}")
    for entry in known.history:
        typer.echo(f"{entry.when}  {len(entry.runs)} runs: {entry.reason}")


def _checked(
    baseline: Path,
    results: Path,
    rerun: str | None,
    margin: float | None,
    partial: bool,
    data: str | None,
    device: str,
    quiet: bool,
) -> CheckResult:
    from encoder_bench.base.progress import make_reporter

    if rerun is None:
        from encoder_bench.gate.check import check

        return check(baseline, results, margin=margin, partial=partial)
    from encoder_bench.gate import replay

    reporter = make_reporter(quiet=quiet)
    if rerun == "quick":
        return replay.rerun_quick(baseline, reporter, margin=margin, data=data, device=device)
    return replay.rerun_full(baseline, results, reporter, margin=margin, data=data, device=device)
