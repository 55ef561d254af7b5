"""The kinds of task, one record each, and the samples that a recipe's task asks about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from encoder_bench.base.errors import DataError, RecipeError, UnknownNameError, unknown_name_message
from encoder_bench.base.plugins import plugins
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.sample import Sample
from encoder_bench.data.sample_table import SampleTable
from encoder_bench.metrics import short_answers, vqa
from encoder_bench.metrics.metric import LIKELIHOOD, find_metric, runner_metrics

if TYPE_CHECKING:
    from encoder_bench.data.folder import DataFolder

ENTRY_POINTS = "encoder_bench.tasks"


@dataclass(frozen=True, slots=True)
class Runner:
    """A kind of task: how answers are read and scores are broken down.

    Its metrics are those whose `runner` is its name.

    Attributes:
        parse: an answer to what is scored of it; None where it cannot be parsed.
        facets: facets of samples by which scores are broken down.
        break_down_all: whether every metric is broken down; else only the primary one.
        closed: whether a reference, too, must be one that can be parsed.
        export: samples and answers to the rows of a file to upload where no reference is public.
    """

    name: str
    parse: Callable[[str], str | None]
    facets: tuple[str, ...] = ()
    break_down_all: bool = False
    closed: bool = False
    export: Callable[[Sequence[Sample], Sequence[str]], list[dict[str, Any]]] | None = None


def _vqa_export(samples: Sequence[Sample], answers: Sequence[str]) -> list[dict[str, Any]]:
    """Return rows in the form that the VQA server takes."""
    return [
        {"question_id": int(sample.sample_id.rpartition("/")[2]), "answer": text.strip()}
        for sample, text in zip(samples, answers, strict=True)
    ]


def _parsed_count(text: str) -> str | None:
    count = short_answers.parse_count(text)
    return None if count is None else str(count)


_YES_NO = {True: "yes", False: "no", None: None}
_BUILT_IN = {
    runner.name: runner
    for runner in (
        Runner(
            "vqa", lambda text: vqa.normalise(text) if text.strip() else None,
            facets=("answer_type", "question_type"), export=_vqa_export,
        ),
        Runner("captioning", lambda text: text.strip() or None),
        Runner(
            "counting", _parsed_count,
            facets=("answer", "crowding"), break_down_all=True, closed=True,
        ),
        Runner(
            "identification", lambda text: _YES_NO[short_answers.parse_yes_no(text)],
            facets=("answer", "crowding", "setting"), break_down_all=True, closed=True,
        ),
    )
}  # fmt: skip


def find_runner(name: str) -> Runner:
    """Return a runner by name; other packages add theirs by the entry point `encoder_bench.tasks`.

    Raises:
        UnknownNameError: there is none; the nearest are suggested.
    """
    known = _BUILT_IN
    if name not in known:
        known = _BUILT_IN | plugins(ENTRY_POINTS, Runner, _BUILT_IN)
    if name not in known:
        raise UnknownNameError("task runner", name, known)
    return known[name]


@dataclass(frozen=True, slots=True)
class TaskSamples:
    """A task's recipe and the test samples that are asked and scored.

    `corpus` is the whole split, where only a part of it is scored and a metric depends on it;
    `training` are the run's training samples of the task.
    """

    name: str
    recipe: TaskRecipe
    samples: Sequence[Sample]
    corpus: Sequence[Sample] | None = None
    training: Sequence[Sample] = ()

    def check(self) -> Runner:
        """Return the task's runner after `check_recipe` and `check_samples`.

        Raises:
            DataError: no samples.
        """
        runner = check_recipe(self.name, self.recipe)
        if not self.samples:
            raise DataError(f"task '{self.name}': no samples to score")
        check_samples(self.name, runner, self.samples)
        return runner


def check_recipe(task: str, recipe: TaskRecipe) -> Runner:
    """Return a task's runner once its recipe has been checked, which needs no data.

    Raises:
        UnknownNameError: no such runner.
        RecipeError: an unknown metric, a primary one that is not listed, or one of likelihoods
            without candidates.
    """
    runner = find_runner(recipe.runner)
    known = runner_metrics(runner.name)
    for name in recipe.metrics:
        if name.removesuffix(LIKELIHOOD) not in known:
            raise RecipeError(f"task '{task}': {unknown_name_message('metric', name, known)}")
    if recipe.primary not in recipe.metrics:
        raise RecipeError(
            f"task '{task}': the primary metric '{recipe.primary}' is not among its metrics"
        )
    by_likelihood = any(name.endswith(LIKELIHOOD) for name in recipe.metrics)
    if by_likelihood != bool(recipe.candidates):
        raise RecipeError(
            f"task '{task}': a metric that ends in {LIKELIHOOD} and 'candidates' need each other"
        )
    return runner


def check_samples(task: str, runner: Runner, samples: Sequence[Sample]) -> None:
    """Check samples before they are asked.

    Raises:
        DataError: one occurs twice, or a closed answer cannot be parsed; names the sample.
    """
    seen: set[str] = set()
    table = samples if isinstance(samples, SampleTable) else None
    for sample_id in table.sample_ids() if table else (each.sample_id for each in samples):
        if sample_id in seen:
            raise DataError(f"task '{task}': sample id {sample_id} occurs twice")
        seen.add(sample_id)
    for sample in samples if runner.closed else ():
        if sample.references and runner.parse(sample.references[0]) is None:
            raise DataError(
                f"sample {sample.sample_id}: its answer {sample.references[0]!r} is none that "
                f"'{runner.name}' can score"
            )


def read_samples(
    folder: DataFolder, task: str, recipe: TaskRecipe, *, limit: int | None = None
) -> TaskSamples:
    """Return a task's test samples, at most `limit` of them, and the whole split where it counts.

    Raises as `DataFolder.samples` and `find_metric`.
    """
    samples = folder.task_samples(task, recipe, "test", limit)
    corpus = None
    if limit is not None and any(find_metric(name).needs_corpus for name in recipe.metrics):
        corpus = folder.task_samples(task, recipe, "test")
    return TaskSamples(task, recipe, samples, corpus)
