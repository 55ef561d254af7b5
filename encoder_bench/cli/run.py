"""`encoder-bench run`: one encoder, one adapter, one row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encoder_bench.base.errors import RecipeError
from encoder_bench.cli import options
from encoder_bench.pipeline.plan import DEFAULT_ENCODER, DEFAULT_TASKS, RunPlan, make_plan

if TYPE_CHECKING:
    from encoder_bench.pipeline.run import RunOutcome

EPILOG = (
    "The same command again finds the finished run; a killed one goes on where it was. "
    "Every other key of a recipe: --set KEY=VALUE, see adapters/README.md."
)

_WHAT, _HOW, _WHERE = "What to compare", "How to train", "Where"


def run_command(
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            "-e",
            metavar="NAME",
            help="A name of `encoder-bench encoders`, timm:NAME, open_clip:ARCH/PRETRAINED, "
            "hf:REPO[@REV], dir:PATH, or two joined by +.",
            rich_help_panel=_WHAT,
        ),
    ] = DEFAULT_ENCODER,
    joint_tune: Annotated[
        bool,
        typer.Option(
            "--joint-tune", help="Tune the encoder too; else frozen.", rich_help_panel=_WHAT
        ),
    ] = False,
    adapter: Annotated[
        str,
        typer.Option(
            metavar="quick|laptop|gvt|llava|FILE.toml",
            help="Adapter recipe: projector, LLM, what trains and how.",
            rich_help_panel=_WHAT,
        ),
    ] = "quick",
    tasks: Annotated[
        str,
        typer.Option(
            metavar="NAME,...", help="Task recipes' names or files.", rich_help_panel=_WHAT
        ),
    ] = ",".join(DEFAULT_TASKS),
    seed: Annotated[int, typer.Option(help="Fixes all chance.", rich_help_panel=_WHAT)] = 0,
    data: Annotated[
        str,
        typer.Option(
            metavar="scenes|coco|DIR",
            help="Test data: the embedded scenes, $COCO, or a folder in the official layouts.",
            rich_help_panel=_WHERE,
        ),
    ] = "scenes",
    train_data: Annotated[
        str | None,
        typer.Option(
            metavar="scenes|coco|DIR",
            help="Training data, where it is not --data.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Score at most N samples a task (seeded).", rich_help_panel=_WHERE
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The encoder's checkpoint on disk, instead of the Hub.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    results: options.Results = Path("results"),
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_WHERE)
    ] = "auto",
    projector: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="projector.name", rich_help_panel=_HOW),
    ] = None,
    visual_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="projector.visual_tokens: the same number for every encoder.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    llm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="llm.name: tiny-llama, smollm2-135m, a Hub id, a folder, a .gguf file.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    llm_train: Annotated[
        str | None,
        typer.Option(metavar="frozen|lora|full", help="llm.train", rich_help_panel=_HOW),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="L[,L]",
            help="encoder.layer: which blocks' tokens, -1 the last, -2 as LLaVA; several are "
            "joined along channels.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="encoder.resolution", rich_help_panel=_HOW),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Optimizer steps of each stage.", rich_help_panel=_HOW),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other key of the adapter recipe; the value is TOML.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    trackers: Annotated[
        str | None,
        typer.Option(
            metavar="tensorboard,wandb,...",
            help="Experiment trackers to log the training to: those of accelerate, by name.",
            rich_help_panel="Output",
        ),
    ] = None,
    cache_limit: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            help="Most that this run may add to the feature cache; else 80% of the free disk.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Let a Hub repository run its own code; recorded.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved settings and the estimated time, memory and disk; do nothing.",
            rich_help_panel="Output",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Run again though it is done.", rich_help_panel="Output"),
    ] = False,
    quiet: options.Quiet = False,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train an adapter on one encoder, score four tasks, write one row of the table.

    With no option at all: a tiny encoder, frozen, on drawn scenes; minutes on two cores.
    """
    plan = make_plan(
        encoder=encoder,
        joint=joint_tune,
        adapter=adapter,
        projector=projector,
        visual_tokens=visual_tokens,
        llm=llm,
        llm_train=llm_train,
        layer=parse_layers(layer),
        resolution=resolution,
        steps=steps,
        data=data,
        training_data=train_data,
        tasks=[name.strip() for name in tasks.split(",") if name.strip()],
        seed=seed,
        limit=limit,
        weights=weights,
        results=results,
        device=device,
        settings=dict(parse_setting(text) for text in set_ or []),
        trust_remote_code=trust_remote_code,
    )
    if dry_run:
        _print_plan(plan, json_output=json_output)
        return
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.base.processes import join_processes
    from encoder_bench.base.progress import make_reporter
    from encoder_bench.pipeline.run import run, run_worker

    processes = join_processes(cpu=choose_device(device).type == "cpu")
    names = [name.strip() for name in (trackers or "").split(",") if name.strip()]
    if not processes.is_main:
        run_worker(plan, processes, trackers=names)
        return
    outcome = run(
        plan,
        make_reporter(quiet=quiet or json_output),
        force=force,
        trackers=names,
        cache_limit_bytes=None if cache_limit is None else int(cache_limit * 2**30),
        processes=processes,
    )
    if json_output:
        typer.echo(outcome.record.model_dump_json(indent=2))
    else:
        _print_outcome(outcome, results)


def parse_layers(text: str | None) -> list[int] | None:
    """Read `--layer -2,-8`.

    Raises:
        RecipeError: not whole numbers.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"--layer {text}: give whole numbers, as in -1 or -2,-8") from None


def parse_setting(text: str) -> tuple[str, Any]:
    """Read `KEY=VALUE`, the value as TOML, or as a bare string where it is no TOML."""
    import tomllib

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text}: give KEY=VALUE, as in training.precision=bfloat16")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _print_plan(plan: RunPlan, *, json_output: bool) -> None:
    from encoder_bench.pipeline.estimate import estimate_run

    estimate = estimate_run(plan)
    settings = {
        **plan.scoring_settings(),
        "data": plan.data,
        "training_data": plan.training_data,
        "results": str(plan.results),
        "device": plan.device,
    }
    if json_output:
        typer.echo(json.dumps({"plan": settings, "estimate": estimate.as_json()}, indent=2))
        return
    from rich.console import Console
    from rich.pretty import Pretty

    console = Console()
    console.print(Pretty(settings, expand_all=False, max_depth=6))
    for line in estimate.lines():
        console.print(line, markup=False, highlight=False)


def _print_outcome(outcome: RunOutcome, results: Path) -> None:
    from rich.console import Console

    from encoder_bench.results.terminal import print_table

    record = outcome.record
    console = Console()
    if outcome.found:
        console.print(f"This run was done on {record.created}; --force runs it again.")
    print_table([record], console)
    flag = "" if record.joint else " --joint-tune"
    console.print(f"record       {outcome.path}", highlight=False, soft_wrap=True)
    console.print(
        f"predictions  {results / 'predictions' / record.run_id}", highlight=False, soft_wrap=True
    )
    console.print(
        f"next         encoder-bench run --encoder {record.encoder.name}{flag}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"             encoder-bench table --results {results}   (report, compare, check: --help)",
        highlight=False,
        soft_wrap=True,
    )
