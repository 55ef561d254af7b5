"""The one evaluation: ask, prepare, score, the same for every task.

What belongs here: what becomes of answers. How they are got is `asking.py`'s, what a prediction is
worth is the runner module's, what blind controls answer is `controls.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from encoder_bench.base.files import write_text
from encoder_bench.base.hashing import hash_file
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.base.record import Score, TaskScores
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import recorded_metric
from encoder_bench.tasks.measures import Measured, PredictionSets, broken_down, score_of
from encoder_bench.tasks.predict import Predictor, TaskPredictions, predict_task, prompt_of
from encoder_bench.tasks.registry import (
    LIKELIHOOD,
    find_runner,
    needs_corpus,
    prepare_runners,
    split_metrics,
)


def evaluate(
    model: Predictor,
    task: str,
    recipe: TaskRecipe,
    samples: Sequence[Sample],
    *,
    predictions: Path,
    controls: Sequence[str],
    batch_images: int,
    seed: int,
    reporter: Reporter,
    corpus: Sequence[Sample] | None = None,
) -> TaskScores:
    """Ask the model every sample of one task, with the image and blind, and score the answers.

    Several tasks are better asked one by one, prepared together and then scored: a Java program
    then starts once for all of them.

    Args:
        model: who is asked.
        task: the task's name, for progress and errors.
        recipe: prompt, decoding, metrics.
        samples: test samples, each id once.
        predictions: the file of answers; one that an earlier run left is gone on with.
        controls: blind controls, as the recipe names them.
        batch_images: images asked about at once.
        seed: of shuffling and of the bootstrap.
        reporter: where progress goes.
        corpus: every sample of the split, where `needs_corpus(recipe)`; None for `samples`.

    Raises:
        RecipeError: an unknown runner or metric.
        DataError: no samples, or a sample id twice.
        EncoderBenchError: the predictions cannot be written.
    """
    answered = predict_task(
        model,
        task,
        recipe,
        samples,
        predictions=predictions,
        controls=controls,
        batch_images=batch_images,
        seed=seed,
        reporter=reporter,
    )
    prepare_tasks([answered])
    return score_task(answered, seed=seed, reporter=reporter, corpus=corpus)


def prepare_tasks(tasks: Iterable[TaskPredictions]) -> None:
    """Let the runners see the answers of all tasks at once, before the first is scored."""
    prepare_runners(
        (
            task.recipe.runner,
            PredictionSets(task.samples, list(task.answers.values()), task.recipe.metrics),
        )
        for task in tasks
    )


def score_task(
    answered: TaskPredictions,
    *,
    seed: int,
    reporter: Reporter,
    corpus: Sequence[Sample] | None = None,
) -> TaskScores:
    """Score the answers to a task and finish its file of predictions.

    Args:
        answered: what `predict_task` returned.
        seed: of the bootstrap.
        reporter: told where a file to upload lies.
        corpus: every sample of the split, where `needs_corpus(recipe)`; None for the task's own.

    Raises:
        EncoderBenchError: the predictions cannot be written.
    """
    recipe, samples = answered.recipe, answered.samples
    runner = find_runner(recipe.runner)
    whole = {"corpus": corpus} if needs_corpus(recipe) else {}
    generated, chosen = split_metrics(recipe.metrics)
    measured = {}
    for control, texts in answered.answers.items():
        measured[control] = runner.measure(samples, texts, generated, **whole)
        likeliest = answered.choices.get(control, texts)
        by_likelihood = runner.measure(samples, likeliest, chosen, **whole)
        for name, measure in by_likelihood.measures.items():
            measured[control].measures[f"{name}{LIKELIHOOD}"] = measure
    answered.growing.finish(_rows(answered, measured))
    export = getattr(runner, "export", None)
    if export is not None and not any(sample.references for sample in samples):
        rows = export(samples, answered.answers[None])
        path = answered.predictions.with_suffix(".export.json")
        write_text(path, json.dumps(rows, ensure_ascii=False) + "\n")
        reporter.note(f"{answered.name}: the file to upload is {path} ({len(rows)} answers)")
    return _scores(recipe, samples, measured, answered.predictions, seed)


def _rows(
    answered: TaskPredictions, measured: dict[str | None, Measured]
) -> Iterator[dict[str, Any]]:
    for control, texts in answered.answers.items():
        found, chosen = measured[control], answered.choices.get(control)
        for index, (sample, text) in enumerate(zip(answered.samples, texts, strict=True)):
            parsed = found.parsed[index]
            yield {
                "sample_id": sample.sample_id,
                "image_id": sample.image_id,
                "question": sample.question,
                "prompt": prompt_of(answered.recipe, sample),
                "prediction": text,
                **({"choice": chosen[index]} if chosen is not None else {}),
                "parsed": parsed,
                "outcome": "unparsable" if parsed is None else "scored",
                "references": list(sample.references),
                "scores": _sample_scores(found, index),
                "control": control,
            }


def _sample_scores(measured: Measured, index: int) -> dict[str, float | None]:
    """Return the metrics that a single sample has, in their own unit; None where not defined."""
    scores: dict[str, float | None] = {}
    for name, measure in measured.measures.items():
        if measure.reason is not None:
            continue
        scores[name] = measure.sample_score(index)
    return scores


def _scores(
    recipe: TaskRecipe,
    samples: Sequence[Sample],
    measured: dict[str | None, Measured],
    predictions: Path,
    seed: int,
) -> TaskScores:
    own = measured[None]
    scores: dict[str | None, dict[str, Score]] = {
        control: {
            name: score_of(measure, samples, seed=seed) for name, measure in found.measures.items()
        }
        for control, found in measured.items()
    }
    others = [name for name in own.measures if own.every_metric and name != recipe.primary]
    broken = {
        name: broken_down(own.measures[name], samples, own.breakdowns, seed=seed)
        for name in (recipe.primary, *others)
    }
    return TaskScores(
        primary=recipe.primary,
        column=recipe.column,
        metrics=scores[None],
        controls={control: values for control, values in scores.items() if control is not None},
        breakdown=broken.pop(recipe.primary),
        more_breakdowns={name: facets for name, facets in broken.items() if facets},
        parse_failures=sum(parsed is None for parsed in own.parsed),
        predictions_file=predictions.name,
        predictions_sha256=hash_file(predictions),
        definition=recipe.model_dump(mode="json"),
        metric_versions={name: recorded_metric(name).version for name in own.measures},
    )
