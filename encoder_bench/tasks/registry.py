"""Which runner a recipe's name stands for; plug-ins add theirs through an entry point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module, metadata
from types import ModuleType
from typing import Protocol, cast

from encoder_bench.base.errors import RecipeError, UnknownNameError, unknown_name_message
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import LIKELIHOOD as LIKELIHOOD
from encoder_bench.tasks.measures import Measured, PredictionSets

ENTRY_POINTS = "encoder_bench.tasks"
_RUNNERS = ("vqa", "captioning", "counting", "identification")


class Runner(Protocol):
    """What a task adds to the one evaluation loop: a module, or any object, with these two.

    It may also have:
    `CORPUS_METRICS`, metrics whose value depends on the whole split (`measure` is then given it as
    `corpus=`);
    `prepare(tasks)`, called once with the `PredictionSets` of all of a run's tasks, before
    any is measured; `export(samples, predictions)`, the rows of a file to
    upload where the answers are not public.

    Attributes:
        METRICS: names that a recipe may list.
    """

    METRICS: tuple[str, ...]

    def measure(
        self,
        samples: Sequence[Sample],
        predictions: Sequence[str],
        metrics: Sequence[str],
        **corpus: Sequence[Sample] | None,
    ) -> Measured:
        """Score predictions, one a sample, in order."""


def runner_names() -> list[str]:
    """Return the names of all runners, the built-in ones first."""
    return [*_RUNNERS, *sorted(entry.name for entry in metadata.entry_points(group=ENTRY_POINTS))]


def find_runner(name: str) -> Runner:
    """Return a runner by name.

    Raises:
        UnknownNameError: there is none; the nearest are suggested.
    """
    if name in _RUNNERS:
        module: ModuleType = import_module(f"encoder_bench.tasks.{name}")
        return cast(Runner, module)
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            return cast(Runner, entry.load())
    raise UnknownNameError("task runner", name, runner_names())


def prepare_runners(answers: Iterable[tuple[str, PredictionSets]]) -> None:
    """Let each runner that can prepare see all that it will measure, in one call.

    Args:
        answers: a runner's name and what it will measure, one a task.

    Raises:
        UnknownNameError: no such runner.
    """
    by_runner: dict[str, list[PredictionSets]] = {}
    for name, sets in answers:
        by_runner.setdefault(name, []).append(sets)
    for name, tasks in by_runner.items():
        prepare = getattr(find_runner(name), "prepare", None)
        if prepare is not None:
            prepare(tasks)


def needs_corpus(recipe: TaskRecipe) -> bool:
    """Return whether a metric of the recipe depends on the whole split.

    Raises:
        UnknownNameError: no such runner.
    """
    return bool(
        set(getattr(find_runner(recipe.runner), "CORPUS_METRICS", ())) & set(recipe.metrics)
    )


def split_metrics(metrics: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the metrics of generated answers, and those of the likeliest candidates.

    >>> split_metrics(["yesno_accuracy", "yesno_accuracy@likelihood"])
    (['yesno_accuracy'], ['yesno_accuracy'])
    """
    chosen = [name.removesuffix(LIKELIHOOD) for name in metrics if name.endswith(LIKELIHOOD)]
    return [name for name in metrics if not name.endswith(LIKELIHOOD)], chosen


def check_metrics(task: str, runner: Runner, recipe: TaskRecipe) -> None:
    """Check a recipe's metrics against what its runner has.

    Raises:
        RecipeError: an unknown metric, a primary one that is not listed, or one of likelihoods
            without candidates.
    """
    generated, chosen = split_metrics(recipe.metrics)
    for name in (*generated, *chosen):
        if name not in runner.METRICS:
            message = unknown_name_message("metric", name, runner.METRICS)
            raise RecipeError(f"task '{task}': {message}")
    if recipe.primary not in recipe.metrics:
        raise RecipeError(
            f"task '{task}': the primary metric '{recipe.primary}' is not among its metrics"
        )
    if bool(chosen) != bool(recipe.candidates):
        raise RecipeError(
            f"task '{task}': a metric that ends in {LIKELIHOOD} and 'candidates' need each other"
        )
