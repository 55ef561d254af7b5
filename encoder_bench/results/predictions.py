"""A run's answers, one a sample, as they lie beside its record.

What belongs here: reading and checking the JSON lines. Writing them is the task runner's job.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encoder_bench.errors import RecordError
from encoder_bench.hashing import hash_file
from encoder_bench.results.record import RunRecord


class Prediction(BaseModel):
    """One answer and what it scored.

    Attributes:
        sample_id: the sample that it answers.
        image_id: the sample's image; samples of one image are not independent.
        question: the bare question, empty for captions.
        prediction: what the model wrote.
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
    path = predictions_path(results, record, task)
    try:
        if hash_file(path) != record.tasks[task].predictions_sha256:
            raise RecordError(
                f"{path}: not the predictions that record {record.run_id} was made from; it was "
                "edited or damaged"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: predictions cannot be read ({error})") from error
    found: dict[str | None, dict[str, Prediction]] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        prediction = _parse(line, f"{path}:{number}")
        samples = found.setdefault(prediction.control, {})
        if prediction.sample_id in samples:
            raise RecordError(f"{path}:{number}: sample '{prediction.sample_id}' stands here twice")
        samples[prediction.sample_id] = prediction
    return {control: list(samples.values()) for control, samples in found.items()}


def _parse(line: str, place: str) -> Prediction:
    try:
        return Prediction.model_validate(json.loads(line))
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise RecordError(f"{place}: not a whole prediction ({reason})") from error
