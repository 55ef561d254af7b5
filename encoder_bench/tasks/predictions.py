"""A run's answers, one a sample, as they lie beside its record.

What belongs here: reading and checking the JSON lines, plain or packed with gzip as a committed
baseline keeps them. Writing them is the task runner's job.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord


class Prediction(BaseModel):
    """One answer and what it scored.

    Attributes:
        sample_id: the sample that it answers.
        image_id: the sample's image; samples of one image are not independent.
        question: the bare question, empty for captions.
        prompt: what the model was asked, the template filled in.
        prediction: what the model wrote.
        choice: the likeliest of the task's candidates, where it has any.
        parsed: what was scored of it; None where it could not be parsed.
        outcome: `scored` or `unparsable`.
        references: the human answers.
        scores: metric name -> this sample's score, as the metric's own unit has it.
        control: the blind control that it belongs to; None for the model itself.
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


def predictions_path(results: Path, record: RunRecord, task: str) -> Path:
    """Return where a task's predictions lie: `results/predictions/RUN/FILE`.

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
    try:
        plain = path.is_file() or not packed.is_file()
        content = path.read_bytes() if plain else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(f"{path}: predictions cannot be read ({error})") from error
    if hashlib.sha256(content).hexdigest() != record.tasks[task].predictions_sha256:
        raise RecordError(
            f"{path}: not the predictions that record {record.run_id} was made from; it was "
            "edited or damaged"
        )
    return content


def read_predictions(
    results: Path, record: RunRecord, task: str, *, control: str | None = None
) -> list[Prediction]:
    """Read a task's answers of the model itself, or of one of its blind controls.

    Raises:
        RecordError: as `read_controls`.
    """
    return read_controls(results, record, task).get(control, [])


def read_controls(
    results: Path, record: RunRecord, task: str
) -> dict[str | None, list[Prediction]]:
    """Read a task's answers by control; the model's own stand under None.

    Raises:
        RecordError: the file is missing, damaged or not the one that the record was made from, a
            line is half-written, or a sample stands in it twice; names file and line.
    """
    content = predictions_content(results, record, task)
    path = predictions_path(results, record, task)
    found: dict[str | None, dict[str, Prediction]] = {}
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        prediction = _parse(line, f"{path}:{number}")
        samples = found.setdefault(prediction.control, {})
        if prediction.sample_id in samples:
            raise RecordError(f"{path}:{number}: sample '{prediction.sample_id}' stands here twice")
        samples[prediction.sample_id] = prediction
    return {control: list(samples.values()) for control, samples in found.items()}


def _packed(path: Path) -> Path:
    return path.with_name(path.name + ".gz")


def _parse(line: bytes, place: str) -> Prediction:
    try:
        return Prediction.model_validate_json(line)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise RecordError(f"{place}: not a whole prediction ({reason})") from error
