"""`python -m zoo`: the tiny encoders and the tiny language model, made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.cli import options, run_app

EPILOG = (
    "Weights and a card go to the folder; a killed run resumes from its last checkpoint. "
    "`make zoo` is --all. An encoder in a folder of your own is used with --encoder dir:DIR."
)


_All = Annotated[
    bool,
    typer.Option(
        "--all",
        help="The tiny LLM and all six encoders, on one budget: minutes on a GPU, hours on a CPU.",
    ),
]
_Images = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="scenes|DIR",
        help="Captioned images for the encoders; DIR in COCO's layout.",
    ),
]


def pretrain_command(
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="deit|clip|siglip|mae|dino|dinov2|llm",
            help="One encoder by its objective, or the tiny language model.",
        ),
    ] = None,
    everything: _All = False,
    data: _Images = "scenes",
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Optimizer steps, instead of the default."),
    ] = None,
    images_per_step: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Images (pages, for the LLM) per step."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Instead of the package's own folder.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="auto takes a GPU where there is one.")
    ] = "auto",
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Pretrain a tiny encoder by its family's own objective; resumes if interrupted."""
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.base.progress import make_reporter
    from zoo import zoo
    from zoo.schedule import with_changes

    if everything == (objective is not None):
        raise EncoderBenchError("give either --objective NAME or --all")
    reporter, chosen = make_reporter(quiet=quiet), choose_device(device)
    budget = with_changes(zoo.ENCODER_BUDGET, steps=steps, images_per_step=images_per_step)
    language = with_changes(zoo.LANGUAGE_BUDGET, steps=steps, images_per_step=images_per_step)
    if everything:
        cards = zoo.zoo(
            data=data, budget=budget, language_budget=language, output=output, reporter=reporter,
            seed=seed, device=chosen,
        )  # fmt: skip
        for card in cards:
            typer.echo(f"{card['name']}: {json.dumps(card['held_out'])}")
    elif objective == "llm":
        zoo.pretrain_llm(
            budget=language, output=output, reporter=reporter, seed=seed, device=chosen
        )
    else:
        card = zoo.pretrain(
            str(objective), data=data, budget=budget, output=output, reporter=reporter, seed=seed,
            device=chosen,
        )  # fmt: skip
        typer.echo(json.dumps(card["held_out"], indent=1))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command(context_settings=options.HELP_NAMES, epilog=EPILOG)(pretrain_command)

if __name__ == "__main__":
    run_app(app, "python -m zoo")
