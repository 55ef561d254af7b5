"""`encoder-bench results | ask | export`: runs that are done, and what is done with them."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.files import write_text
from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.base.record import RunRecord, read_records
from encoder_bench.cli import options

app = options.group("List, show, remove and export runs.")


@app.command("ls")
def list_command(
    results: options.Results = options.RESULTS,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the runs of a results folder; exit 1 if a record is damaged."""
    from encoder_bench.results.runs import inventory

    records, damaged = inventory(results)
    rows = [_summary(record) for record in records]
    if json_output:
        typer.echo(json.dumps({"runs": rows, "damaged": damaged}, indent=1))
    else:
        for record, row in zip(records, rows, strict=True):
            scores = ", ".join(
                f"{task} " + ("n/a" if value is None else f"{value:.1f}")
                for task, value in row["scores"].items()
            )
            typer.echo(
                f"{record.run_id}  {record.created}  {record.encoder.name}  {record.mode:<6}  "
                f"seed {record.seed}  {scores}"
            )
    for problem in damaged:
        typer.echo(f"damaged: {problem}", err=True)
    if damaged:
        raise typer.Exit(1)


def _summary(record: RunRecord) -> dict[str, Any]:
    return {
        "run_id": record.run_id,
        "created": record.created,
        "encoder": record.encoder.name,
        "joint": record.joint,
        "seed": record.seed,
        "scores": {name: scores.metrics[scores.primary].value
                   for name, scores in record.tasks.items()},
    }  # fmt: skip


@app.command("show")
def show_command(
    run: options.Run,
    results: options.Results = options.RESULTS,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Print a run: row, parts, training checks, recipe, hardware; the whole record with --json."""
    from encoder_bench.results.runs import find_run

    record = find_run(results, run)
    if json_output:
        typer.echo(record.model_dump_json(indent=1))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    from encoder_bench.results.export import record_sheet
    from encoder_bench.results.formats import print_table

    console = Console()
    print_table([record], console)
    console.print(Markdown(record_sheet(record)))


@app.command("rm")
def remove_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...")],
    results: options.Results = options.RESULTS,
    debug: options.Debug = False,
) -> None:
    """Remove runs: record, predictions and checkpoints."""
    from encoder_bench.results.runs import remove_runs

    for removed in remove_runs(results, runs):
        typer.echo(f"removed {removed}")


@app.command("export")
def export_command(
    target: Annotated[Path, typer.Argument(help="FILE.parquet, or FILE.json for one run.")],
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="For JSON in the lm-eval harness's shape.")
    ] = None,
    results: options.Results = options.RESULTS,
    debug: options.Debug = False,
) -> None:
    """Export all predictions as Parquet, or one run's scores as lm-eval style JSON."""
    from encoder_bench.results.export import export_harness, export_parquet
    from encoder_bench.results.runs import find_run

    wanted = ".parquet" if run is None else ".json"
    if target.suffix.lower() != wanted:
        every = "all runs are written as Parquet, one of them (--run) as JSON"
        raise EncoderBenchError(f"{target}: give FILE{wanted}; {every}")
    if run is not None:
        write_text(target, json.dumps(export_harness(find_run(results, run)), indent=1) + "\n")
    else:
        export_parquet(results, read_records(results), target)
    typer.echo(f"wrote {target}")


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
    trust_remote_code: options.TrustRemoteCode = False,
    debug: options.Debug = False,
) -> None:
    """Ask a finished run's model about an image: one question, or a conversation."""
    if question is None and not chat:
        raise EncoderBenchError("ask: give a question, or --chat to be asked for one")
    from encoder_bench.data.images import load_image
    from encoder_bench.mllm.generate import Conversation
    from encoder_bench.pipeline.build import load_run
    from encoder_bench.results.runs import find_run

    picture = load_image(image)
    mllm = load_run(
        results, find_run(results, run), weights=weights, device=device,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
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


def export_model_command(
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
    trust_remote_code: options.TrustRemoteCode = False,
    debug: options.Debug = False,
) -> None:
    """Write a run's model as transformers' LlavaForConditionalGeneration, with its card.

    The encoder is one that transformers loads, the projector linear or an MLP of two layers on
    each patch token; a part that the class cannot express is named, and nothing is written.
    transformers loads the folder, and so does lmms-eval on top of it; vLLM's LLaVA knows CLIP,
    SigLIP and Pixtral vision towers only. The chat template takes content as a string or as parts.
    """
    from encoder_bench.base.network import upload_folder
    from encoder_bench.mllm.export import export_llava
    from encoder_bench.pipeline.build import load_run
    from encoder_bench.results.export import model_card
    from encoder_bench.results.runs import find_run

    record = find_run(results, run)
    mllm = load_run(
        results, record, weights=weights, device="cpu", trust_remote_code=trust_remote_code
    )
    typer.echo(f"wrote {export_llava(mllm, folder, card=model_card(record))}")
    if push_to_hub is not None:
        typer.echo(f"uploaded to {upload_folder(folder, push_to_hub)}")
