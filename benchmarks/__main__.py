"""`python -m benchmarks`: speed, measured as ratios of two ways in one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.cli import options, run_app

Repeats = Annotated[int, typer.Option(metavar="N", min=1, help="Timed repeats of each way.")]
Device = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where.")]


def bench_command(
    results: options.Results = Path("results"),
    only: Annotated[
        str | None,
        typer.Option(
            metavar="mllm|precision|training|side-by-side|encoders|metrics|utilisation|full-size",
            help="One of the benches; full-size (minutes, 2 GB of disk) only if it is named.",
        ),
    ] = None,
    repeats: Repeats = 5,
    llm: Annotated[str, typer.Option(metavar="NAME", help="The language model.")] = "tiny-llama",
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of side-by-side; else a small random ViT.")
    ] = None,
    device: Device = "cpu",
    share: Annotated[float, typer.Option(metavar="X", help="Of full-size.")] = 1.0,
    debug: options.Debug = False,
) -> None:
    """Measure speed as ratios of two ways in one run, and write them to DIR/bench/."""
    from benchmarks import (
        encoders,
        full_size,
        metrics,
        mllm,
        precision,
        side_by_side,
        training,
        utilisation,
    )
    from benchmarks.summary import summary
    from encoder_bench.base.files import write_text

    benches: dict[str, Callable[[], dict[str, Any]]] = {
        f"mllm-{llm.replace('/', '--')}": lambda: mllm.run_bench(
            llm=llm, repeats=repeats, device=device
        ),
        f"precision-{llm.replace('/', '--')}": lambda: precision.run_bench(
            llm=llm, repeats=repeats, device=device
        ),
        "training": lambda: training.run_bench(repeats=repeats, device=device),
        "side-by-side": lambda: side_by_side.run_bench(
            encoder=encoder, llm=llm, repeats=repeats, device=device
        ),
        "encoders": lambda: encoders.run_bench(repeats=repeats, device=device),
        "metrics": lambda: metrics.run_bench(repeats=repeats, device=device),
        "utilisation": lambda: utilisation.run_bench(repeats=repeats, device=device),
        "full-size": lambda: full_size.run_bench(share=share),
    }
    known = {name.removesuffix(f"-{llm.replace('/', '--')}") for name in benches}
    if only is not None and only not in known:
        raise UnknownNameError("bench", only, sorted(known))
    for name, bench in benches.items():
        if not name.startswith(only) if only is not None else name == "full-size":
            continue
        report = bench()
        text = json.dumps(report, indent=1)
        path = results / "bench" / f"{name}-{device.replace(':', '')}.json"
        write_text(path, text + "\n")
        typer.echo("\n".join(summary(report)) or text)
        typer.echo(f"wrote {path}", err=True)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command(context_settings=options.HELP_NAMES)(bench_command)

if __name__ == "__main__":
    run_app(app, "python -m benchmarks")
