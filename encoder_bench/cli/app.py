"""The command tree; each command is a function of its own module."""

import inspect
from typing import Annotated

import typer

from encoder_bench import __version__
from encoder_bench.cli import (
    cache,
    compare,
    data,
    encoders,
    gate,
    inspection,
    options,
    predict,
    results,
    run,
    score,
    sweep,
)

_HELP = """Which pretrained visual encoder should you use in a multimodal LLM?

encoder-bench trains a projector and an LLM on top of an encoder, [bold]frozen[/bold] or
[bold]jointly tuned[/bold], scores the result on VQA, captioning, object counting (OC) and
multi-class identification (MCI), and writes one row of the comparison table, with blind baselines,
95% intervals, and proof of what trained.

Start with [bold]encoder-bench run[/bold]: it needs no download and takes minutes on two cores.
"""

_EPILOG = (
    "Examples:  encoder-bench run --encoder tiny-mae --joint-tune   |   "
    "encoder-bench run --encoder dinov2-l --adapter llava --data /data   |   encoder-bench table"
)


def _unwrapped(text: str) -> str:
    """Return help whose paragraphs are one line each, for the terminal to wrap."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


def _unwrap(tree: typer.Typer) -> None:
    for command in tree.registered_commands:
        assert command.callback is not None
        command.help = _unwrapped(command.callback.__doc__ or "")
    for group in tree.registered_groups:
        assert group.typer_instance is not None
        _unwrap(group.typer_instance)


app = typer.Typer(
    name="encoder-bench",
    help=_unwrapped(_HELP),
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings=options.HELP_NAMES,
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


app.command("run", rich_help_panel="Measure", epilog=run.EPILOG)(run.run_command)
app.command("sweep", rich_help_panel="Measure", epilog=sweep.EPILOG)(sweep.sweep_command)
app.command("status", rich_help_panel="Measure")(sweep.status_command)
app.command("score", rich_help_panel="Measure")(score.score_command)
app.command("table", rich_help_panel="Compare")(compare.table_command)
app.command("compare", rich_help_panel="Compare")(compare.compare_command)
app.command("contrasts", rich_help_panel="Compare", epilog=compare.CONTRASTS_EPILOG)(
    compare.contrasts_command
)
app.command("recommend", rich_help_panel="Compare")(compare.recommend_command)
app.command("report", rich_help_panel="Compare")(compare.report_command)
app.command("check", rich_help_panel="Compare", epilog=gate.EPILOG)(gate.check_command)
app.add_typer(gate.baseline_app, name="baseline", rich_help_panel="Compare")
app.add_typer(encoders.app, name="encoders", rich_help_panel="Look up")
app.command("features", rich_help_panel="Look up")(inspection.features_command)
app.command("probe", rich_help_panel="Look up")(inspection.probe_command)
app.command("predict", rich_help_panel="Look up")(predict.predict_command)
app.add_typer(data.app, name="data", rich_help_panel="Look up")
app.add_typer(results.app, name="results", rich_help_panel="Look up")
app.add_typer(cache.cache_app, name="cache", rich_help_panel="Look up")
app.add_typer(cache.setup_app, name="setup", rich_help_panel="Look up")
app.command("ask", rich_help_panel="Use")(results.ask_command)
app.command("export", rich_help_panel="Use")(results.export_model_command)
_unwrap(app)
