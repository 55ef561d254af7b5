"""Asking a model every question of a task, with the image and blind, and writing down its answers.

What belongs here: order, batches and resume. What the answers are worth is `runner.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Phase, Reporter
from encoder_bench.base.recipes import DecodingSettings, TaskRecipe
from encoder_bench.data.sample import Sample
from encoder_bench.tasks.controls import (
    ASKS_MODEL,
    constant_answer,
    majority_answers,
    shuffled_images,
)
from encoder_bench.tasks.predictions_file import PredictionsWriter, choice_key
from encoder_bench.tasks.registry import check_metrics, find_runner


class Predictor(Protocol):
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


@dataclass(frozen=True, slots=True)
class TaskPredictions:
    """A task whose every question has been answered, under each control (None: as it is).

    Attributes:
        name: the task's.
        recipe: the task's.
        samples: in the order of the answers.
        answers: control -> a generated answer a sample.
        choices: control -> the likeliest candidate a sample, where the recipe has candidates.
        growing: the answers as they were written down.
        predictions: the file that they will stand in once they are scored.
    """

    name: str
    recipe: TaskRecipe
    samples: Sequence[Sample]
    answers: dict[str | None, list[str]]
    choices: dict[str | None, list[str]]
    growing: PredictionsWriter
    predictions: Path


def predict_task(
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
) -> TaskPredictions:
    """Ask the model every sample, with the image and blind.

    Args:
        model: who is asked.
        task: the task's name, for progress and errors.
        recipe: prompt, decoding, metrics.
        samples: test samples, each id once.
        predictions: the file of answers; one that an earlier run left is gone on with.
        controls: blind controls, as the recipe names them.
        batch_images: images asked about at once.
        seed: of shuffling.
        reporter: where progress goes.

    Raises:
        RecipeError: an unknown runner or metric.
        DataError: no samples, or a sample id twice.
        EncoderBenchError: the predictions cannot be written.
    """
    runner = find_runner(recipe.runner)
    check_metrics(task, runner, recipe)
    _check_samples(task, samples)
    growing = PredictionsWriter(predictions)
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
    return TaskPredictions(task, recipe, samples, answers, choices, growing, predictions)


def prompt_of(recipe: TaskRecipe, sample: Sample) -> str:
    """Return what the model is asked about a sample, without the chat template."""
    return recipe.prompt.format(question=sample.question)


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
    growing: PredictionsWriter
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
            texts = ask(paths, [[prompt_of(self.recipe, s) for s in group] for group in batch])
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
        prompts = list(dict.fromkeys(prompt_of(self.recipe, sample) for sample in samples))
        by_prompt = dict(zip(prompts, ask(None, [prompts])[0], strict=True))
        answers = {s.sample_id: by_prompt[prompt_of(self.recipe, s)] for s in samples}
        self.growing.append(key, answers)
        phase.advance(len(samples))


def _batches(samples: Sequence[Sample], images: int) -> Iterator[list[list[Sample]]]:
    """Yield batches of images, each with all of its samples."""
    groups: dict[int | str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image_id, []).append(sample)
    every = list(groups.values())
    for start in range(0, len(every), images):
        yield every[start : start + images]
