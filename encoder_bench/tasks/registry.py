"""Which runner a recipe's name stands for; plug-ins add theirs through an entry point."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module, metadata
from types import ModuleType
from typing import Protocol, cast

from encoder_bench.data.sample import Sample
from encoder_bench.errors import RecipeError, UnknownNameError, unknown_name_message
from encoder_bench.tasks.measures import Measured

ENTRY_POINTS = "encoder_bench.tasks"
_RUNNERS = ("vqa", "captioning", "counting", "identification")


class Runner(Protocol):
    """What a task adds to the one evaluation loop: a module, or any object, with these two.

    Attributes:
        METRICS: names that a recipe may list.
    """

    METRICS: tuple[str, ...]

    def measure(
        self, samples: Sequence[Sample], predictions: Sequence[str], metrics: Sequence[str]
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


def check_metrics(task: str, runner: Runner, metrics: Sequence[str], primary: str) -> None:
    """Check a recipe's metrics against what its runner has.

    Raises:
        RecipeError: an unknown metric, or a primary one that is not listed.
    """
    for name in metrics:
        if name not in runner.METRICS:
            message = unknown_name_message("metric", name, runner.METRICS)
            raise RecipeError(f"task '{task}': {message}")
    if primary not in metrics:
        raise RecipeError(f"task '{task}': the primary metric '{primary}' is not among its metrics")
