"""Recorded answers measured again: from predictions on disk to the numbers a metric adds up.

What belongs here: rebuilding samples from predictions and giving them to the task's runner. A
prediction holds the question and the human answers, so neither data nor model is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from pydantic import ValidationError

from encoder_bench.base.errors import RecordError, UnknownNameError
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.base.record import RunRecord
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import Measure
from encoder_bench.tasks.predictions import Prediction
from encoder_bench.tasks.registry import LIKELIHOOD, find_runner, split_metrics

_NO_FILE = Path("not-needed")


def recorded_recipe(record: RunRecord, task: str) -> TaskRecipe:
    """Return the task recipe that a record holds.

    Raises:
        RecordError: this version cannot read it.
    """
    try:
        return TaskRecipe.model_validate(record.tasks[task].definition)
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(str(part) for part in found["loc"])
        raise RecordError(
            f"run {record.run_id}, task {task}: its recipe is not one ({where}: {found['msg']})"
        ) from error


def as_samples(task: str, predictions: Sequence[Prediction]) -> list[Sample]:
    """Return the test samples behind predictions, as far as scoring needs them."""
    return [
        Sample(
            sample_id=each.sample_id,
            task=task,
            image_id=each.image_id,
            image_path=_NO_FILE,
            question=each.question,
            references=each.references,
            target="",
        )
        for each in predictions
    ]


def measure_again(
    record: RunRecord,
    task: str,
    predictions: Sequence[Prediction],
    *,
    leave_out: Collection[str] = (),
) -> tuple[dict[str, Measure], list[str | None]]:
    """Return a task's metrics over recorded answers as today's code computes them.

    Metrics that depend on the whole split are left out where only a part of it was scored.

    Args:
        record: the run.
        task: one of its tasks.
        predictions: its answers, or those of one of its blind controls.
        leave_out: metrics that are not wanted.

    Returns:
        Measures by metric, and what each answer is read as now.

    Raises:
        RecordError: the recorded recipe cannot be read, or its runner is not installed.
    """
    recipe = recorded_recipe(record, task)
    try:
        runner = find_runner(recipe.runner)
    except UnknownNameError as error:
        raise RecordError(f"run {record.run_id}, task {task}: {error}") from error
    unwanted = set(leave_out)
    if record.limit is not None:
        unwanted |= set(getattr(runner, "CORPUS_METRICS", ()))
    known = [name for name in recipe.metrics if name.removesuffix(LIKELIHOOD) in runner.METRICS]
    generated, chosen = split_metrics([name for name in known if name not in unwanted])
    samples = as_samples(task, predictions)
    texts = [each.prediction for each in predictions]
    measured = runner.measure(samples, texts, generated)
    measures = dict(measured.measures)
    if chosen:
        choices = [each.prediction if each.choice is None else each.choice for each in predictions]
        for name, measure in runner.measure(samples, choices, chosen).measures.items():
            measures[f"{name}{LIKELIHOOD}"] = measure
    return measures, measured.parsed
