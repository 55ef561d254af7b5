"""The one evaluation: answers are predicted, read, measured and scored alike for every task.

Recorded answers are measured again by today's code, which needs neither data nor model.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pydantic import ValidationError

from encoder_bench.base.errors import RecordError, UnknownNameError
from encoder_bench.base.files import write_text
from encoder_bench.base.hashing import hash_file
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.base.record import RunRecord, Score, TaskScores
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import (
    LIKELIHOOD,
    Measure,
    find_metric,
    measure_java_once,
    recorded_metric,
    runner_metrics,
)
from encoder_bench.metrics.statistics import References, score_interval
from encoder_bench.tasks.predictions import (
    Prediction,
    Predictor,
    Reply,
    predict,
    read_predictions,
    write_predictions,
)
from encoder_bench.tasks.task import Runner, TaskSamples, find_runner

Breakdown = dict[str, dict[str, Score]]
"""Facet -> facet value -> score."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A set of answers: every metric of it, and what each answer was read as (None: unparsed)."""

    measures: dict[str, Measure]
    parsed: list[str | None]

    def predictions(
        self,
        recipe: TaskRecipe,
        samples: Sequence[Sample],
        answers: Sequence[Reply],
        control: str | None = None,
    ) -> Iterator[Prediction]:
        """Yield the answers one by one, each with its scores under the metrics that are not n/a."""
        by_metric = {name: m.sample_scores() for name, m in self.measures.items() if not m.reason}
        rows = zip(samples, answers, self.parsed, strict=True)
        for index, (sample, reply, parsed) in enumerate(rows):
            yield Prediction(
                sample_id=sample.sample_id,
                image_id=sample.image_id,
                question=sample.question,
                prompt=recipe.fill_prompt(sample.question),
                prediction=reply.text,
                choice=reply.choice,
                parsed=parsed,
                outcome="unparsable" if parsed is None else "scored",
                references=sample.references,
                scores={name: scores[index] for name, scores in by_metric.items()},
                control=control,
            )


def evaluate(
    model: Predictor,
    tasks: Sequence[TaskSamples],
    folder: Path,
    *,
    batch_images: int,
    seed: int,
    reporter: Reporter,
    controls: bool = True,
    timed: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> dict[str, TaskScores]:
    """Return the scores of a model on tasks, by task; resumed if interrupted.

    All tasks are answered before the first is scored, so that a Java program of a metric starts
    once for all of them. `folder` takes the predictions, `TASK.jsonl` each; `seed` is of shuffled
    images and of the bootstrap; `controls` says whether the recipes' blind baselines are answered
    too; `timed` is entered with the name of each phase.

    Raises:
        EncoderBenchError: as `TaskSamples.check`, or predictions cannot be written.
    """
    for task in tasks:
        task.check()
    answers: dict[str, dict[str | None, list[Reply]]] = {}
    for task in tasks:
        with timed(task.name):
            answers[task.name] = predict(
                model,
                task,
                predictions=folder / f"{task.name}.jsonl",
                controls=task.recipe.controls if controls else (),
                batch_images=batch_images,
                seed=seed,
                reporter=reporter,
            )
    with timed("scoring_together"):
        measure_java_once(
            (task.recipe.metrics, [reply.text for reply in each], _references(task.samples))
            for task in tasks
            for each in answers[task.name].values()
        )
    scores = {}
    for task in tasks:
        with timed(task.name):
            path = folder / f"{task.name}.jsonl"
            scores[task.name] = _score(task, answers[task.name], path, seed, reporter)
    return scores


def measure(
    runner: Runner,
    metrics: Sequence[str],
    references: References,
    answers: Sequence[Reply],
    corpus: References | None = None,
) -> Measured:
    """Return metrics of one answer per sample, `@likelihood` ones of its likeliest candidate.

    Raises:
        DataError: a reference cannot be parsed.
    """
    texts = [reply.text for reply in answers]
    # Only constant and majority answers have no choice: they are scored by their text either way.
    choices = [reply.text if reply.choice is None else reply.choice for reply in answers]
    measures = {
        name: find_metric(name).measure(
            choices if name.endswith(LIKELIHOOD) else texts, references, corpus
        )
        for name in metrics
    }
    return Measured(measures, [runner.parse(text) for text in texts])


def score_of(measure: Measure, samples: Sequence[Sample], *, seed: int) -> Score:
    """Return a measure's score with its interval clustered on images."""
    images = [sample.image_id for sample in samples]
    n, count = len(samples), len(set(images))
    value = measure.score
    if value is None:
        reason = measure.reason or "not defined on these answers (division by zero)"
        return Score(value=None, samples=n, images=count, reason=reason)
    interval = score_interval(measure.values, images, measure.statistic, seed=seed)
    low, high = interval or (None, None)
    return Score(value=value, low=low, high=high, samples=n, images=count)


def breakdowns(
    runner: Runner, measures: Mapping[str, Measure], samples: Sequence[Sample], *, seed: int
) -> dict[str, Breakdown]:
    """Return scores by metric, facet and facet value, commonest values first.

    Metrics that are n/a are left out, and facets that no sample has.
    """
    rows: dict[str, dict[str, list[int]]] = {}
    for facet in runner.facets:
        values: dict[str, list[int]] = {}
        for index, sample in enumerate(samples):
            if facet in sample.facets:
                values.setdefault(str(sample.facets[facet]), []).append(index)
        if values:
            rows[facet] = dict(sorted(values.items(), key=lambda item: -len(item[1])))
    return {
        name: {
            facet: {
                value: score_of(
                    Measure(measure.values[indices], measure.statistic),
                    [samples[index] for index in indices],
                    seed=seed,
                )
                for value, indices in values.items()
            }
            for facet, values in rows.items()
        }
        for name, measure in measures.items()
        if rows and measure.reason is None
    }


def _references(samples: Sequence[Sample]) -> References:
    return [sample.references for sample in samples]


def _score(
    task: TaskSamples,
    answers: Mapping[str | None, Sequence[Reply]],
    path: Path,
    seed: int,
    reporter: Reporter,
) -> TaskScores:
    """Score a task's answers by control, and finish its file of predictions."""
    recipe, samples, runner = task.recipe, task.samples, find_runner(task.recipe.runner)
    corpus = None if task.corpus is None else _references(task.corpus)
    references = _references(samples)
    measured = {
        control: measure(runner, recipe.metrics, references, each, corpus)
        for control, each in answers.items()
    }
    written = (
        measured[control].predictions(recipe, samples, each, control)
        for control, each in answers.items()
    )
    write_predictions(path, chain.from_iterable(written))
    if runner.export is not None and not any(references):
        rows = runner.export(samples, [reply.text for reply in answers[None]])
        target = path.with_suffix(".export.json")
        write_text(target, json.dumps(rows, ensure_ascii=False) + "\n")
        reporter.note(f"{task.name}: the file to upload is {target} ({len(rows)} answers)")
    scores = {
        control: {name: score_of(m, samples, seed=seed) for name, m in each.measures.items()}
        for control, each in measured.items()
    }
    own = measured[None].measures
    named = own if runner.break_down_all else {recipe.primary: own[recipe.primary]}
    broken = breakdowns(runner, named, samples, seed=seed)
    return TaskScores(
        primary=recipe.primary,
        column=recipe.column,
        metrics=scores[None],
        controls={control: each for control, each in scores.items() if control is not None},
        breakdown=broken.pop(recipe.primary, {}),
        more_breakdowns=broken,
        parse_failures=measured[None].parsed.count(None),
        predictions_file=path.name,
        predictions_sha256=hash_file(path),
        definition=recipe.model_dump(mode="json"),
        metric_versions={name: find_metric(name).version for name in recipe.metrics},
    )


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
    answers = [Reply(each.prediction, each.choice) for each in predictions]
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
