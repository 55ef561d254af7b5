"""A model's answers to every sample of a task, with the image and blind; resumed if interrupted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.tasks.controls import (
    ASKS_MODEL,
    MEAN_IMAGE,
    constant_answer,
    majority_answers,
    shuffled_images,
)
from encoder_bench.tasks.predictions import GrowingPredictions, Key, Reply
from encoder_bench.tasks.task import TaskSamples

Images = Sequence[Path | None]
"""None for no image at all, `MEAN_IMAGE` for the mean of the training features."""
Prompts = Sequence[Sequence[str]]
"""One group for each image."""


class Predictor(Protocol):
    """A model, as far as a task needs to know it."""

    def answer(
        self,
        images: Images,
        prompts: Prompts,
        decoding: DecodingSettings,
        candidates: Sequence[str] = (),
    ) -> Sequence[Sequence[Reply]]:
        """Return one reply to each prompt of each image."""


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

    It is asked what `predictions`, the file that the answers will be in once they are scored, does
    not answer yet. `seed` is that of the shuffled images.
    """
    recipe, samples = task.recipe, task.samples
    growing = GrowingPredictions(predictions, with_choices=bool(recipe.candidates))
    by_model = [None, *(name for name in controls if name in ASKS_MODEL)]
    asked = _by_image(task, by_model, seed)
    done = sum(each.key in growing.replies for each in chain(*asked))
    total = len(samples) * len(by_model)
    if done < total:
        with reporter.phase(task.name, total, "answers") as phase:
            phase.advance(done)
            for found in _replies(model, task, asked, growing.replies, batch_images):
                growing.append(found)
                phase.advance(len(found))
    answers: dict[str | None, Answers] = {}
    for control in (None, *controls):
        if control in by_model:
            replies = [growing.replies[control, sample.sample_id] for sample in samples]
            choices = [reply.choice or "" for reply in replies] if recipe.candidates else None
            answers[control] = Answers([reply.text for reply in replies], choices)
        elif control == "constant":
            answers[control] = Answers(constant_answer(samples, recipe.primary))
        else:
            answers[control] = Answers(majority_answers(samples, task.training))
    return answers


class _Asked(NamedTuple):
    """A sample's prompt and what is shown with it, for the model itself or a blind baseline."""

    key: Key
    image: Path | None
    prompt: str


def _by_image(task: TaskSamples, controls: Sequence[str | None], seed: int) -> list[list[_Asked]]:
    """Return what is asked, in the order of the samples' images: of each, all at once.

    An image is shown with its own questions and, as a shuffled one, with another's; its own are
    also asked blind.
    """
    others = shuffled_images(task.samples, seed)
    blind = {"no-image": None, "mean-image": MEAN_IMAGE}
    groups: dict[Path, list[_Asked]] = {sample.image_path: [] for sample in task.samples}
    for control in controls:
        for sample in task.samples:
            shuffled = control == "shuffled-images"
            path = others[sample.image_id] if shuffled else sample.image_path
            image = blind.get(control or "", path)
            prompt = task.recipe.fill_prompt(sample.question)
            groups[path].append(_Asked((control, sample.sample_id), image, prompt))
    return list(groups.values())


def _replies(
    model: Predictor,
    task: TaskSamples,
    asked: Sequence[Sequence[_Asked]],
    answered: Mapping[Key, Reply],
    batch_images: int,
) -> Iterator[dict[Key, Reply]]:
    """Yield what is not answered yet, a batch of images at a time.

    The same prompt about the same image, or without one, is asked once.
    """
    known = {(e.image, e.prompt): answered[e.key] for e in chain(*asked) if e.key in answered}
    groups = [[each for each in group if each.key not in answered] for group in asked]
    groups = [group for group in groups if group]
    for start in range(0, len(groups), batch_images):
        batch = list(chain(*groups[start : start + batch_images]))
        wanted: dict[Path | None, dict[str, None]] = {}
        for each in batch:
            if (each.image, each.prompt) not in known:
                wanted.setdefault(each.image, {})[each.prompt] = None
        prompts = [list(own) for own in wanted.values()]
        recipe = task.recipe
        replies = model.answer(list(wanted), prompts, recipe.decoding, recipe.candidates)
        for image, own, found in zip(wanted, prompts, replies, strict=True):
            known |= {(image, prompt): each for prompt, each in zip(own, found, strict=True)}
        yield {each.key: known[each.image, each.prompt] for each in batch}
