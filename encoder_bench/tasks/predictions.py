"""A run's own predictions: written while they grow, resumed, finished, and read beside a record."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encoder_bench.base.errors import RecordError
from encoder_bench.base.files import write_text
from encoder_bench.base.record import RunRecord


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
