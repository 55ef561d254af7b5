"""`encoder-bench run`: one encoder, one adapter, one row."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from encoder_bench.base.progress import QuietReporter, make_reporter
from encoder_bench.cli import options
from encoder_bench.encoders.registry import find_spec
from encoder_bench.pipeline.plan import DEFAULT_ENCODER, RunPlan, check_places, make_plan

if TYPE_CHECKING:
    from encoder_bench.pipeline.run import RunOutcome

EPILOG = (
    "The same command again finds the finished run; an interrupted one resumes from its last "
    "checkpoint. Every other key of a recipe: --set KEY=VALUE, see adapters/README.md."
)

_JOINT = "--joint-tune"


def run_command(
    encoder: options.Encoder = DEFAULT_ENCODER,
    joint_tune: options.JointTune = False,
    adapter: options.Adapter = "quick",
    tasks: options.Tasks = options.DEFAULT_TASKS,
    seed: options.Seed = 0,
    data: options.Data = "scenes",
    train_data: options.TrainData = None,
    mixture: options.Mixture = None,
    limit: options.Limit = None,
    controls: options.Controls = None,
    weights: options.WeightsByName = None,
    results: options.Results = options.RESULTS,
    device: options.Device = "auto",
    projector: options.Projector = None,
    visual_tokens: options.VisualTokens = None,
    llm: options.LanguageModel = None,
    llm_train: options.TrainLanguageModel = None,
    layer: options.Layer = None,
    resolution: options.Resolution = None,
    steps: options.Steps = None,
    set_: options.Set = None,
    trackers: options.Trackers = None,
    cache_limit: options.CacheLimit = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    quiet: options.Quiet = False,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train an adapter on one encoder, score four tasks, write one row of the table.

    With no option at all: a tiny encoder, frozen, on drawn scenes; minutes on two cores.
    """
    plan = make_plan(
        encoder=encoder, joint=joint_tune, adapter=adapter, projector=projector,
        visual_tokens=visual_tokens, llm=llm, llm_train=llm_train,
        layer=options.whole_numbers("--layer", layer), resolution=resolution, steps=steps,
        data=data, training_data=train_data, mixture=options.listed(mixture),
        tasks=options.listed(tasks), seed=seed, limit=limit, controls=controls,
        weights=options.weights_by_name([encoder], weights).get(encoder),
        results=results, device=device, settings=options.settings(set_),
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    warn_of_drawn_scenes([encoder], data)
    check_places(plan)
    if dry_run:
        _print_plan(plan, json_output=json_output)
        return
    from encoder_bench.pipeline.run import run_here

    outcome = run_here(
        plan, make_reporter(quiet=quiet or json_output), force=force,
        trackers=options.listed(trackers), cache_limit_bytes=options.gibibytes(cache_limit),
    )  # fmt: skip
    if outcome is not None and json_output:
        typer.echo(outcome.record.model_dump_json(indent=2))
    elif outcome is not None:
        _print_outcome(outcome, plan.results)


def warn_of_drawn_scenes(encoders: Sequence[str], data: str) -> None:
    """Warn where published encoders are to be compared on drawings that say nothing of them."""
    from encoder_bench.data.folder import is_scenes

    real = [name for name in encoders if find_spec(name).source != "bundled"]
    if not is_scenes(data) or not real or all(n.startswith("random:") for n in real):
        return
    QuietReporter().warn(
        f"{', '.join(real)}: the default data are drawn 72 px scenes; they test the set-up and say "
        "nothing about a published encoder. On real data: encoder-bench run --encoder "
        f"{real[0]} --adapter laptop --data DIR (README, 'On real data', says what DIR holds)"
    )


def _print_plan(plan: RunPlan, *, json_output: bool) -> None:
    from encoder_bench.pipeline.estimate import estimate_run

    estimate = estimate_run(plan)
    if json_output:
        settings = plan.scoring_settings() | {
            "data": plan.data,
            "training_data": plan.training_data,
            "results": str(plan.results),
            "device": plan.device,
        }
        typer.echo(json.dumps({"plan": settings, "estimate": estimate.as_json()}, indent=2))
        return
    lines = [*estimate.lines(), "", *_plan_lines(plan), "", "every setting: add --json"]
    typer.echo("\n".join(lines))


def _plan_lines(plan: RunPlan) -> list[str]:
    """Return what a run would do, in one line per part, stage and task."""
    recipe = plan.adapter
    layers = ", ".join(map(str, recipe.encoder.layer))
    tokens = recipe.projector.visual_tokens or "the encoder's"
    mode = "jointly tuned" if plan.joint else "frozen"
    rows = [
        ("encoder", f"{plan.encoder}, {mode}, layer {layers}"),
        ("projector", f"{recipe.projector.name}, {tokens} visual tokens"),
        ("LLM", f"{recipe.llm.name}, trained: {recipe.llm.train}"),
        ("adapter", f"{plan.adapter_name}, {recipe.training.precision}"),
    ]
    for stage in recipe.stages:
        length = f"{stage.epochs:g} epochs" if stage.steps is None else f"{stage.steps:,} steps"
        parts = {"projector": stage.projector, "LLM": stage.llm, "encoder": stage.encoder}
        rates = ", ".join(f"{n} {part.learning_rate:g}" for n, part in parts.items() if part)
        asked = f"{stage.samples_per_image} samples of {', '.join(stage.tasks)}"
        what = f"rows of mixture {stage.mixture}" if stage.mixture else f"images x at most {asked}"
        rows.append(("stage", f"{stage.name}: {length} of {stage.images_per_step} {what}"))
        rows.append(("", f"learning rates: {rates}"))
    for name, mixture in plan.mixtures.items():
        sources = ", ".join(f"{s.name} ({s.path or s.hub})" for s in mixture.sources)
        rows.append(("mixture", f"{name}: {sources}"))
    for name, task in plan.tasks.items():
        more = f" and {len(task.metrics) - 1} more metrics" if len(task.metrics) > 1 else ""
        rows.append(("task", f"{name}: {task.primary}{more}"))
    limit = "every sample" if plan.limit is None else f"at most {plan.limit} samples per task"
    rows += [
        ("data", f"{plan.data}, {limit}; training on {plan.training_data}; seed {plan.seed}"),
        ("results", f"{plan.results}; device {plan.device}"),
    ]
    return [f"{name:<10}  {text}" for name, text in rows]


def _print_outcome(outcome: RunOutcome, results: Path) -> None:
    from encoder_bench.results.formats import print_table

    record = outcome.record
    if outcome.found:
        typer.echo(f"This run was done on {record.created}; --force runs it again.")
    print_table([record])
    folder = "" if results == options.RESULTS else f" --results {shlex.quote(str(results))}"
    typer.echo(f"record       {outcome.path}")
    typer.echo(f"predictions  {results / 'predictions' / record.run_id}")
    if other := _other_mode(sys.argv[1:], joint=record.joint):
        typer.echo(f"next         {other}")
    typer.echo(f"table        encoder-bench table{folder}   (report, compare, check: --help)")


def _other_mode(arguments: Sequence[str], *, joint: bool) -> str | None:
    """Return the command that was given in the other mode; None where the recipe tunes jointly.

    >>> _other_mode(["run", "--limit", "5"], joint=False)
    'encoder-bench run --limit 5 --joint-tune'
    """
    if joint and _JOINT not in arguments:
        return None
    kept = [argument for argument in arguments if argument not in (_JOINT, "--force")]
    return shlex.join(["encoder-bench", *kept, *([] if joint else [_JOINT])])
