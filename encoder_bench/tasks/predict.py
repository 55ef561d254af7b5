"""A model's answers to every sample of a task, with the image and blind; resumed if interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.data.sample import Sample
from encoder_bench.tasks.controls import (
    ASKS_MODEL,
    MEAN_IMAGE,
    constant_answer,
    majority_answers,
    shuffled_images,
)
from encoder_bench.tasks.predictions import GrowingPredictions, choice_key
from encoder_bench.tasks.task import TaskSamples

Images = Sequence[Path] | None
"""None for no image at all, `[MEAN_IMAGE]` for the mean of the training features."""
Prompts = Sequence[Sequence[str]]
"""One group for each image."""
Texts = list[list[str]]
"""One for each prompt of each group."""


class Predictor(Protocol):
    """A model, as far as a task needs to know it."""

    def answer(self, images: Images, prompts: Prompts, decoding: DecodingSettings) -> Texts:
        """Return one answer for each prompt of each image."""

    def choose(self, images: Images, prompts: Prompts, candidates: Sequence[str]) -> Texts:
        """Return the likeliest candidate for each prompt of each image, in the same form."""


@dataclass(frozen=True, slots=True)
class Answers:
    """One answer per sample: generated, and the likeliest candidate where there are any."""

    texts: list[str]
    choices: list[str] | None = None


def predict(
    model: Predictor,
    task: TaskSamples,
    *,
    predictions: Path,
    controls: Sequence[str],
    batch_images: int,
    seed: int,
    reporter: Reporter,
) -> dict[str | None, Answers]:
    """Return the answers to a task's samples by control; the model's own are under None.

    Args:
        model: asked what `predictions` does not answer yet.
        task: what is asked.
        predictions: the file that the answers will be in once they are scored.
        controls: blind baselines.
        batch_images: batch size, in images.
        seed: of the shuffled images.
        reporter: shows progress.
    """
    recipe, samples = task.recipe, task.samples
    growing = GrowingPredictions(predictions)

    def answers(ask: _Ask, control: str | None, key: str | None, words: str = "") -> list[str]:
        waiting = [s for s in samples if growing.answer(key, s.sample_id) is None]
        if waiting:
            name = ", ".join(word for word in (task.name, control, words) if word)
            with reporter.phase(name, len(samples), "samples") as phase:
                phase.advance(len(samples) - len(waiting))
                for found in _batches(ask, task, waiting, control, batch_images, seed):
                    growing.append(key, found)
                    phase.advance(len(found))
        return [growing.answer(key, sample.sample_id) or "" for sample in samples]

    def generate(images: Images, prompts: Prompts) -> Texts:
        return model.answer(images, prompts, recipe.decoding)

    def choose(images: Images, prompts: Prompts) -> Texts:
        return model.choose(images, prompts, recipe.candidates)

    found: dict[str | None, Answers] = {}
    for control in (None, *controls):
        if control is None or control in ASKS_MODEL:
            found[control] = Answers(
                answers(generate, control, control),
                answers(choose, control, choice_key(control), "likelihood")
                if recipe.candidates
                else None,
            )
        elif control == "constant":
            found[control] = Answers(constant_answer(samples, recipe.primary))
        else:
            found[control] = Answers(majority_answers(samples, task.training))
    return found


_Ask = Callable[[Images, Prompts], Texts]


def _batches(
    ask: _Ask,
    task: TaskSamples,
    waiting: Sequence[Sample],
    control: str | None,
    batch_images: int,
    seed: int,
) -> Iterator[dict[str, str]]:
    """Yield answers by sample id, a batch of images with all of their samples at a time."""
    if control in ("no-image", "mean-image"):  # equal prompts have equal answers
        prompts = {sample.sample_id: task.recipe.fill_prompt(sample.question) for sample in waiting}
        different = list(dict.fromkeys(prompts.values()))
        shown = None if control == "no-image" else [MEAN_IMAGE]
        by_prompt = dict(zip(different, ask(shown, [different])[0], strict=True))
        yield {sample_id: by_prompt[prompt] for sample_id, prompt in prompts.items()}
        return
    others = shuffled_images(task.samples, seed) if control == "shuffled-images" else {}
    by_image: dict[int | str, list[Sample]] = {}
    for sample in waiting:
        by_image.setdefault(sample.image_id, []).append(sample)
    groups = list(by_image.values())
    for start in range(0, len(groups), batch_images):
        batch = groups[start : start + batch_images]
        paths = [others.get(group[0].image_id, group[0].image_path) for group in batch]
        rows = ask(paths, [[task.recipe.fill_prompt(s.question) for s in group] for group in batch])
        yield {
            sample.sample_id: text
            for group, row in zip(batch, rows, strict=True)
            for sample, text in zip(group, row, strict=True)
        }
