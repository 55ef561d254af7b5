"""A model's answers, with the image and blind: asked, kept as they come, read beside a record."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encoder_bench.base.errors import DataError, RecordError
from encoder_bench.base.files import write_text
from encoder_bench.base.hashing import hash_json
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.base.record import RunRecord
from encoder_bench.tasks.controls import (
    ASKS_MODEL,
    MEAN_IMAGE,
    constant_answer,
    majority_answers,
    shuffled_images,
)
from encoder_bench.tasks.task import TaskSamples

Images = Sequence[Path | None]
"""None for no image at all, `MEAN_IMAGE` for the mean of the training features."""
Prompts = Sequence[Sequence[str]]
"""One group for each image."""


class Prediction(BaseModel):
    """One answer and what it scored.

    Attributes:
        image_id: the sample's image; samples of one image are not independent.
        question: the bare question, empty for captions.
        choice: the likeliest of the task's candidates, where it has any.
        parsed: what was scored of it; None where it could not be parsed.
        outcome: `scored` or `unparsable`.
        scores: metric name -> this sample's score, in the metric's own unit.
        control: the blind baseline that it belongs to; None for the model itself.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    sample_id: str
    image_id: int | str
    question: str = ""
    prompt: str = ""
    prediction: str
    choice: str | None = None
    parsed: Any = None
    outcome: str = "scored"
    references: tuple[str, ...] = ()
    scores: dict[str, float | None] = Field(default_factory=dict)
    control: str | None = None


class Reply(NamedTuple):
    """What a model writes, and the likeliest candidate where there are any."""

    text: str
    choice: str | None = None


Key = tuple[str | None, str]
"""A control, None for the model itself, and a sample's id."""


class Predictor(Protocol):
    """A model, as far as a task needs to know it."""

    def answer(
        self,
        images: Images,
        prompts: Prompts,
        decoding: DecodingSettings,
        candidates: Sequence[str] = (),
    ) -> Sequence[Sequence[Reply]]:
        """Return one reply to each prompt of each image; with candidates each has a choice."""


class GrowingPredictions:
    """The replies to a task so far; each batch is on disk before the next is asked.

    A run that is killed leaves whole lines and perhaps half of one, which is dropped.
    """

    def __init__(self, path: Path, *, with_choices: bool) -> None:
        """Open the growing file beside `path`, with what an earlier run left in both."""
        self._file, self._with_choices = _growing(path), with_choices
        self.replies: dict[Key, Reply] = {}
        for file in (path, self._file):
            if file.is_file():
                self._load(file.read_text(encoding="utf-8", errors="replace"))
        if self._file.is_file():
            data = self._file.read_bytes()
            with self._file.open("r+b") as stream:
                stream.truncate(data.rfind(b"\n") + 1)

    def _load(self, text: str) -> None:
        for line in text.split("\n"):
            try:
                row = json.loads(line)
                reply = Reply(row["prediction"], row.get("choice"))
                if (reply.choice is not None) == self._with_choices:
                    self.replies[row.get("control"), row["sample_id"]] = reply
            except (ValueError, KeyError, AttributeError, TypeError):
                continue  # half a line of a killed run; its sample is asked again

    def append(self, replies: Mapping[Key, Reply]) -> None:
        """Write a batch of replies."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        rows = (
            {"sample_id": name, "prediction": text, "choice": choice, "control": control}
            for (control, name), (text, choice) in replies.items()
        )
        with self._file.open("a", encoding="utf-8") as stream:
            stream.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        self.replies |= replies


def claim_answers(folder: Path, claims: Iterable[tuple[str, Any]]) -> None:
    """Note in `folder` what answers each task there: model, recipe and data, as JSON.

    Raises:
        DataError: it holds a task's answers that were not made so, or a name occurs twice.
    """
    file = folder / "evaluation.json"
    try:
        known = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    for task, made in claims:
        path, key = folder / f"{task}.jsonl", hash_json(made)
        there = has_predictions(path) or _growing(path).is_file()
        if known.setdefault(task, "" if there else key) != key:
            raise DataError(
                f"{folder}: its answers to {task} are not known to be of this run, these data and "
                "this recipe; give another folder, and each task a name of its own"
            )
    write_text(file, json.dumps(known, indent=1))


def predict(
    model: Predictor,
    task: TaskSamples,
    *,
    predictions: Path,
    controls: Sequence[str],
    batch_images: int,
    seed: int,
    reporter: Reporter,
) -> dict[str | None, list[Reply]]:
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
    answers: dict[str | None, list[Reply]] = {}
    for control in (None, *controls):
        if control in by_model:
            answers[control] = [growing.replies[control, each.sample_id] for each in samples]
        elif control == "constant":
            answers[control] = [Reply(text) for text in constant_answer(samples, recipe.primary)]
        else:
            answers[control] = [Reply(text) for text in majority_answers(samples, task.training)]
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


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write the finished file in one step, as `write_text`, and remove the growing one."""
    rows = (
        each.model_dump(exclude={"choice"} if each.choice is None else None) for each in predictions
    )
    write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    _growing(path).unlink(missing_ok=True)


def predictions_path(results: Path, record: RunRecord, task: str) -> Path:
    """Return where a task's predictions are: `results/predictions/RUN/FILE`.

    Only the file's name is taken from the record, so that no record reaches out of the folder.
    """
    return results / "predictions" / record.run_id / Path(record.tasks[task].predictions_file).name


def has_predictions(path: Path) -> bool:
    """Return whether a predictions file is there, plain or packed."""
    return path.is_file() or _packed(path).is_file()


def predictions_content(results: Path, record: RunRecord, task: str) -> bytes:
    """Return a task's predictions as JSON lines, unpacked where they are kept as `FILE.gz`.

    Raises:
        RecordError: the file is missing, damaged, or not the one that the record was made from.
    """
    path = predictions_path(results, record, task)
    packed = _packed(path)
    if not has_predictions(path):
        raise RecordError(
            f"{path}: not there; keep a run's predictions beside its record, or run it again"
        )
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(f"{path}: predictions cannot be read ({error})") from error
    if hashlib.sha256(content).hexdigest() != record.tasks[task].predictions_sha256:
        raise RecordError(
            f"{path}: not the predictions that record {record.run_id} was made from; it was "
            "edited or damaged"
        )
    return content


def read_predictions(results: Path, record: RunRecord, task: str) -> list[Prediction]:
    """Read a task's answers of the model itself; raises as `read_controls`."""
    return read_controls(results, record, task).get(None, [])


def read_controls(
    results: Path, record: RunRecord, task: str
) -> dict[str | None, list[Prediction]]:
    """Read a task's answers by control; the model's own are under None.

    Raises:
        RecordError: the file is missing, damaged or not the one that the record was made from, a
            line is half-written, or a sample is in it twice; names file and line.
    """
    content = predictions_content(results, record, task)
    path = predictions_path(results, record, task)
    found: dict[str | None, dict[str, Prediction]] = {}
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            prediction = Prediction.model_validate_json(line)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise RecordError(f"{path}:{number}: not a whole prediction ({reason})") from error
        samples = found.setdefault(prediction.control, {})
        if prediction.sample_id in samples:
            raise RecordError(f"{path}:{number}: sample '{prediction.sample_id}' is here twice")
        samples[prediction.sample_id] = prediction
    return {control: list(samples.values()) for control, samples in found.items()}


def _growing(path: Path) -> Path:
    return path.with_suffix(".partial.jsonl")


def _packed(path: Path) -> Path:
    return path.with_name(path.name + ".gz")
