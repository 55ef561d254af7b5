"""Recorded answers measured by today's code; neither data nor model is needed."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from encoder_bench.base.errors import RecordError, UnknownNameError
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.base.record import RunRecord
from encoder_bench.metrics.metric import (
    LIKELIHOOD,
    measure_java_once,
    recorded_metric,
    runner_metrics,
)
from encoder_bench.tasks.evaluate import Measured, measure
from encoder_bench.tasks.predict import Answers
from encoder_bench.tasks.predictions import Prediction, read_predictions
from encoder_bench.tasks.task import Runner, find_runner


def measure_again(record: RunRecord, task: str, predictions: Sequence[Prediction]) -> Measured:
    """Return a task's metrics over recorded answers as today's code computes them.

    Metrics that depend on the whole split are left out where only a part of it was scored.

    Raises:
        RecordError: the recorded recipe cannot be read, or its runner is not installed.
    """
    recipe, runner = _recorded(record, task)
    known = runner_metrics(runner.name)
    metrics = [
        name
        for name in recipe.metrics
        if name.removesuffix(LIKELIHOOD) in known
        and not (record.limit is not None and recorded_metric(name).needs_corpus)
    ]
    answers = Answers(
        [each.prediction for each in predictions],
        [each.prediction if each.choice is None else each.choice for each in predictions],
    )
    return measure(runner, metrics, [each.references for each in predictions], answers)


def prepare_recorded(results: Path, records: Iterable[RunRecord]) -> None:
    """Score the recorded captions of all runs by each Java program in one go.

    Raises:
        RecordError: predictions are missing or damaged.
    """

    def sets() -> Iterator[tuple[Collection[str], Sequence[str], Sequence[Sequence[str]]]]:
        for record in records:
            for task, scores in record.tasks.items():
                if any(recorded_metric(name).backend == "java" for name in scores.metrics):
                    found = read_predictions(results, record, task)
                    texts = [each.prediction for each in found]
                    yield scores.metrics, texts, [each.references for each in found]

    measure_java_once(sets())


def _recorded(record: RunRecord, task: str) -> tuple[TaskRecipe, Runner]:
    try:
        recipe = TaskRecipe.model_validate(record.tasks[task].definition)
        return recipe, find_runner(recipe.runner)
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(str(part) for part in found["loc"])
        raise RecordError(
            f"run {record.run_id}, task {task}: its recipe is not one ({where}: {found['msg']})"
        ) from error
    except UnknownNameError as error:
        raise RecordError(f"run {record.run_id}, task {task}: {error}") from error
