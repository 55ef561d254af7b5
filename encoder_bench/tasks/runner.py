"""The one evaluation loop: ask, write down, read, score, the same for every task.

What belongs here: order and resume. What a prediction is worth is the runner module's job, what
blind controls answer is `controls.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from encoder_bench.atomic import write_text
from encoder_bench.data.sample import Sample
from encoder_bench.errors import DataError
from encoder_bench.hashing import hash_file
from encoder_bench.progress import Phase, Reporter
from encoder_bench.recipes import DecodingSettings, TaskRecipe
from encoder_bench.record_parts import Score, TaskScores
from encoder_bench.tasks.controls import (
    ASKS_MODEL,
    constant_answer,
    majority_answers,
    shuffled_images,
)
from encoder_bench.tasks.measures import Measured, broken_down, score_of
from encoder_bench.tasks.predictions_file import GrowingPredictions, choice_key
from encoder_bench.tasks.registry import (
    LIKELIHOOD,
    check_metrics,
    find_runner,
    needs_corpus,
    split_metrics,
)


class AnsweringModel(Protocol):
    """A model, as far as a task needs to know it."""

    def answer(
        self,
        images: Sequence[Path] | None,
        prompts: Sequence[Sequence[str]],
        decoding: DecodingSettings,
    ) -> list[list[str]]:
        """Return one answer for each prompt of each image; no image at all where None."""

    def choose(
        self,
        images: Sequence[Path] | None,
        prompts: Sequence[Sequence[str]],
        candidates: Sequence[str],
    ) -> list[list[str]]:
        """Return the likeliest candidate for each prompt of each image, in the same form."""


def evaluate(
    model: AnsweringModel,
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
    """Ask the model every sample, with the image and blind, and score the answers.

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
    runner = find_runner(recipe.runner)
    check_metrics(task, runner, recipe)
    _check_samples(task, samples)
    growing = GrowingPredictions(predictions)
    answers: dict[str | None, list[str]] = {}
    choices: dict[str | None, list[str]] = {}
    for control in (None, *controls):
        if control is None or control in ASKS_MODEL:
            asking = _Asking(task, recipe, samples, control, growing, batch_images, seed, reporter)
            answers[control] = asking.ask(
                lambda images, prompts: model.answer(images, prompts, recipe.decoding)
            )
            if recipe.candidates:
                choices[control] = asking.ask(
                    lambda images, prompts: model.choose(images, prompts, recipe.candidates),
                    likelihood=True,
                )
        elif control == "constant":
            answers[control] = constant_answer(samples, runner, recipe.primary)
        else:
            answers[control] = majority_answers(samples)
    prepare = getattr(runner, "prepare", None)
    if prepare is not None:
        prepare(samples, list(answers.values()), recipe.metrics)
    whole = {"corpus": corpus} if needs_corpus(recipe) else {}
    generated, chosen = split_metrics(recipe.metrics)
    measured = {}
    for control, texts in answers.items():
        measured[control] = runner.measure(samples, texts, generated, **whole)
        by_likelihood = runner.measure(samples, choices.get(control, texts), chosen, **whole)
        for name, measure in by_likelihood.measures.items():
            measured[control].measures[f"{name}{LIKELIHOOD}"] = measure
    growing.finish(_rows(recipe, samples, answers, choices, measured))
    export = getattr(runner, "export", None)
    if export is not None and not any(sample.references for sample in samples):
        rows = export(samples, answers[None])
        path = predictions.with_suffix(".export.json")
        write_text(path, json.dumps(rows, ensure_ascii=False) + "\n")
        reporter.note(f"{task}: the file to upload is {path} ({len(rows)} answers)")
    return _scores(recipe, samples, measured, predictions, seed)


def _check_samples(task: str, samples: Sequence[Sample]) -> None:
    if not samples:
        raise DataError(f"task '{task}': no samples to score")
    seen: set[str] = set()
    for sample in samples:
        if sample.sample_id in seen:
            raise DataError(f"task '{task}': sample id {sample.sample_id} occurs twice")
        seen.add(sample.sample_id)


_Ask = Callable[[Sequence[Path] | None, Sequence[Sequence[str]]], list[list[str]]]


@dataclass(frozen=True, slots=True)
class _Asking:
    """Asking all samples under one control; what is not known yet is written down by batch."""

    task: str
    recipe: TaskRecipe
    samples: Sequence[Sample]
    control: str | None
    growing: GrowingPredictions
    batch_images: int
    seed: int
    reporter: Reporter

    def ask(self, ask: _Ask, *, likelihood: bool = False) -> list[str]:
        """Return an answer a sample, each from `ask` or from what an earlier run wrote down."""
        key = choice_key(self.control) if likelihood else self.control
        open_samples = [s for s in self.samples if not self.growing.known(key, s.sample_id)]
        if open_samples:
            words = [self.task, self.control, "likelihood" if likelihood else None]
            name = ", ".join(word for word in words if word)
            with self.reporter.phase(name, len(self.samples), "samples") as phase:
                phase.advance(len(self.samples) - len(open_samples))
                if self.control == "no-image":
                    self._without_image(ask, key, open_samples, phase)
                else:
                    self._with_images(ask, key, open_samples, phase)
        return [self.growing.answer(key, sample.sample_id) for sample in self.samples]

    def _with_images(
        self, ask: _Ask, key: str | None, samples: Sequence[Sample], phase: Phase
    ) -> None:
        shuffled = self.control == "shuffled-images"
        others = shuffled_images(self.samples, self.seed) if shuffled else {}
        for batch in _batches(samples, self.batch_images):
            paths = [others.get(group[0].image_id, group[0].image_path) for group in batch]
            texts = ask(paths, [[_prompt(self.recipe, s) for s in group] for group in batch])
            self.growing.append(
                key,
                {
                    sample.sample_id: text
                    for group, row in zip(batch, texts, strict=True)
                    for sample, text in zip(group, row, strict=True)
                },
            )
            phase.advance(sum(len(group) for group in batch))

    def _without_image(
        self, ask: _Ask, key: str | None, samples: Sequence[Sample], phase: Phase
    ) -> None:
        """Ask each different prompt once: without an image its answer is always the same."""
        prompts = list(dict.fromkeys(_prompt(self.recipe, sample) for sample in samples))
        by_prompt = dict(zip(prompts, ask(None, [prompts])[0], strict=True))
        answers = {s.sample_id: by_prompt[_prompt(self.recipe, s)] for s in samples}
        self.growing.append(key, answers)
        phase.advance(len(samples))


def _prompt(recipe: TaskRecipe, sample: Sample) -> str:
    return recipe.prompt.format(question=sample.question)


def _batches(samples: Sequence[Sample], images: int) -> Iterator[list[list[Sample]]]:
    """Yield batches of images, each with all of its samples."""
    groups: dict[int | str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image_id, []).append(sample)
    every = list(groups.values())
    for start in range(0, len(every), images):
        yield every[start : start + images]


def _rows(
    recipe: TaskRecipe,
    samples: Sequence[Sample],
    answers: dict[str | None, list[str]],
    choices: dict[str | None, list[str]],
    measured: dict[str | None, Measured],
) -> Iterator[dict[str, Any]]:
    for control, texts in answers.items():
        found, chosen = measured[control], choices.get(control)
        for index, (sample, text) in enumerate(zip(samples, texts, strict=True)):
            parsed = found.parsed[index]
            yield {
                "sample_id": sample.sample_id,
                "image_id": sample.image_id,
                "question": sample.question,
                "prompt": _prompt(recipe, sample),
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
        value = float(measure.statistic(measure.values[index : index + 1])[0])
        scores[name] = value if value == value else None
    return scores


def _scores(
    recipe: TaskRecipe,
    samples: Sequence[Sample],
    measured: dict[str | None, Measured],
    predictions: Path,
    seed: int,
) -> TaskScores:
    own = measured[None]
    versions: Mapping[str, int] = getattr(find_runner(recipe.runner), "VERSIONS", {})
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
        metric_versions={
            name: versions.get(name.removesuffix(LIKELIHOOD), measure.version)
            for name, measure in own.measures.items()
        },
    )
