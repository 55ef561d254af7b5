"""`encoder-bench ask | export`: a finished run's model, used."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.cli import options


def ask_command(
    run: options.Run,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    question: Annotated[
        str | None, typer.Argument(help="As the task's prompt would put it; optional with --chat.")
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Keep asking, one question per line, with what was said before; an empty line "
            "or the end of input ends it.",
        ),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Max new tokens per answer.")
    ] = 64,
    results: options.Results = options.RESULTS,
    weights: options.Weights = None,
    device: options.Device = "auto",
    debug: options.Debug = False,
) -> None:
    """Ask a finished run's model about an image: one question, or a conversation."""
    if question is None and not chat:
        raise EncoderBenchError("ask: give a question, or --chat to be asked for one")
    from encoder_bench.base.recipes import DecodingSettings
    from encoder_bench.data.images import load_image
    from encoder_bench.mllm.generate import Conversation
    from encoder_bench.pipeline.build import load_run
    from encoder_bench.results.runs import find_run

    picture = load_image(image)
    mllm = load_run(results, find_run(results, run), weights=weights, device=device)
    talk = Conversation(mllm, picture, DecodingSettings(max_new_tokens=max_new_tokens))
    if question is not None:
        typer.echo(talk.ask(question))
    while chat and (asked := _next_question()):
        typer.echo(talk.ask(asked))


def _next_question() -> str:
    """Return the next line of standard input; the prompt is shown on a terminal only."""
    if sys.stdin.isatty():
        typer.echo("> ", nl=False, err=True)
    return sys.stdin.readline().strip()


def export_command(
    run: options.Run,
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    results: options.Results = options.RESULTS,
    weights: options.Weights = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Then upload the folder to this model repository, made private if it is new.",
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write a run's model as transformers' LlavaForConditionalGeneration, with its card.

    transformers loads the folder whatever the encoder, and so does lmms-eval on top of it; vLLM's
    LLaVA knows CLIP, SigLIP and Pixtral vision towers only. A part that the class cannot express
    is named, and nothing is written. The chat template takes content as a string or as parts.
    """
    from encoder_bench.base.network import upload_folder
    from encoder_bench.mllm.export import export_llava
    from encoder_bench.pipeline.build import load_run
    from encoder_bench.results.export import model_card
    from encoder_bench.results.runs import find_run

    record = find_run(results, run)
    mllm = load_run(results, record, weights=weights, device="cpu")
    typer.echo(f"wrote {export_llava(mllm, folder, card=model_card(record))}")
    if push_to_hub is not None:
        typer.echo(f"uploaded to {upload_folder(folder, push_to_hub)}")
