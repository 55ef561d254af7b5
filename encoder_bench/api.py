"""The Python interface: `encoder_bench.run`, `evaluate`, `load_model`, `table`, `load_results`.

Each function does what the command of the same name does, and returns typed objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder_bench.base.paths import RESULTS
from encoder_bench.base.progress import make_reporter
from encoder_bench.base.record import RunRecord, TaskScores
from encoder_bench.pipeline.plan import DEFAULT_ENCODER, DEFAULT_TASKS, make_plan

if TYPE_CHECKING:
    import pandas as pd

    from encoder_bench.base.recipes import TaskRecipe
    from encoder_bench.mllm.model import MLLM


def run(
    encoder: str = DEFAULT_ENCODER,
    *,
    joint: bool = False,
    adapter: str = "quick",
    data: str = "scenes",
    training_data: str | None = None,
    mixture: Sequence[str] = (),
    tasks: Sequence[str] = DEFAULT_TASKS,
    seed: int = 0,
    limit: int | None = None,
    controls: str | None = None,
    steps: int | None = None,
    weights: str | Path | None = None,
    results: str | Path = RESULTS,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> RunRecord:
    """Train an adapter on an encoder, score it on every task, and return its record.

    A finished run of the same settings is returned as it is; an interrupted one resumes.

    Args:
        encoder: a name of `encoder-bench encoders`, or a general form such as `timm:NAME`.
        joint: tune the encoder too.
        adapter: an adapter recipe's name or TOML file.
        data: `scenes`, `coco`, or a folder in the official layouts.
        training_data: where training samples come from; None for `data`.
        mixture: recipes of what to train on below `training_data`: one or one a stage, or `none`.
        tasks: task recipes' names or TOML files.
        seed: random seed.
        limit: at most so many test samples per task.
        controls: blind baselines, `none`, `cheap` or `all`; None for the recipe's.
        steps: optimizer steps of each stage, instead of the recipe's.
        weights: the encoder's checkpoint on disk, instead of the Hub.
        results: folder of records, predictions and checkpoints.
        device: `auto` or a torch device.
        settings: any other key of the adapter recipe, as in `{"training.precision": "bf16"}`.
        quiet: print warnings only.

    Raises:
        EncoderBenchError: bad input, a failed training check, a full disk; nothing is lost.
    """
    from encoder_bench.pipeline.run import run as run_plan

    plan = make_plan(
        encoder=encoder, joint=joint, adapter=adapter, data=data, training_data=training_data,
        mixture=mixture, tasks=tasks, seed=seed, limit=limit, controls=controls, steps=steps,
        weights=None if weights is None else Path(weights).expanduser(),
        results=Path(results).expanduser(), device=device, settings=settings,
    )  # fmt: skip
    return run_plan(plan, make_reporter(quiet=quiet)).record


def load_model(
    run: str | RunRecord,
    *,
    results: str | Path = RESULTS,
    weights: str | Path | None = None,
    device: str = "auto",
) -> MLLM:
    """Return a finished run's trained model, in eval mode, verified to be the run's own.

    Args:
        run: a record, a run's id or the start of it, or `ENCODER/MODE[/SEED]`.
        results: the folder of the run.
        weights: the encoder's checkpoint on disk, if the run was given one.
        device: `auto` or a torch device.

    Raises:
        RecordError: no such run, or its trained weights are gone.
        WeightsError: the encoder or the LLM found now is not the run's.
    """
    from encoder_bench.pipeline.build import load_run

    path = None if weights is None else Path(weights).expanduser()
    folder = Path(results).expanduser()
    return load_run(folder, _record(run, folder), weights=path, device=device)


def evaluate(
    run: str | RunRecord,
    *,
    tasks: Sequence[str],
    output: str | Path,
    data: str = "scenes",
    results: str | Path = RESULTS,
    limit: int | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, TaskScores]:
    """Return a finished run's scores on other tasks or other data, by task.

    Args:
        run: as `load_model`.
        tasks: task recipes' names or TOML files.
        output: folder of the predictions, `TASK.jsonl` each; resumed if interrupted.
        data: `scenes`, `coco`, or a folder in the official layouts.
        results: the folder of the run.
        limit: at most so many test samples per task.
        weights: as `load_model`.
        device: `auto` or a torch device.
        quiet: print warnings only.

    Raises:
        EncoderBenchError: bad input; nothing is lost.
    """
    from encoder_bench.base.recipes import load_task
    from encoder_bench.data.folder import open_data
    from encoder_bench.pipeline.predictor import ImagePredictor
    from encoder_bench.tasks.evaluate import evaluate as evaluate_tasks
    from encoder_bench.tasks.task import read_samples

    reporter, record = make_reporter(quiet=quiet), _record(run, Path(results).expanduser())
    folder = open_data(data, reporter)
    asked = [
        read_samples(folder, Path(name).stem, _without_mean_image(load_task(name)), limit=limit)
        for name in tasks
    ]
    model = load_model(record, results=results, weights=weights, device=device)
    return evaluate_tasks(
        ImagePredictor(model),
        asked,
        Path(output).expanduser(),
        batch_images=record.adapter["evaluation_batch_images"],
        seed=record.seed,
        reporter=reporter,
    )


def table(results: str | Path = RESULTS) -> pd.DataFrame:
    """Return the comparison table of a results folder, one row per encoder and mode.

    Raises:
        RecordError: a record is damaged.
    """
    from encoder_bench.base.record import read_records
    from encoder_bench.results.table import table as make_table

    return make_table(read_records(Path(results).expanduser()))


def _without_mean_image(recipe: TaskRecipe) -> TaskRecipe:
    """Return a recipe without the baseline that needs the training images."""
    kept = tuple(name for name in recipe.controls if name != "mean-image")
    return recipe.model_copy(update={"controls": kept})


def _record(run: str | RunRecord, results: Path) -> RunRecord:
    from encoder_bench.results.runs import find_run

    return run if isinstance(run, RunRecord) else find_run(results, run)
