"""The run record: one JSON file a run, schema-versioned, checksummed, written in one step.

What belongs here: the schema and its reading and writing. Tables and comparisons are made from
records by the other modules of this folder and never read anything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encoder_bench.atomic import write_text
from encoder_bench.errors import RecordError
from encoder_bench.hashing import hash_json

SCHEMA_VERSION = 1

Migration = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: Mapping[int, Migration] = {}
"""Schema version -> what turns a record's body of that version into one of the next.

A change of the schema that old records do not fit raises `SCHEMA_VERSION` and adds its migration
here, so that every record ever written can be read.
"""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Frozen):
    """One metric of one task.

    `value`, `low` and `high` are in the metric's own unit (accuracy and CIDEr in percent);
    `low` and `high` are a 95% bootstrap interval clustered on images. A metric that could not be
    computed has `value` None and says why in `reason`; it is never 0.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    samples: int
    images: int
    reason: str | None = None


class TaskScores(_Frozen):
    """A task's scores, those of its blind controls, and its breakdowns.

    Attributes:
        primary: the metric that stands in the table.
        column: the table's column (`VQA Acc`).
        metrics: metric name -> score.
        controls: control name (`no-image`, `shuffled-images`, `constant`, `majority`) ->
            metric name -> score.
        breakdown: facet -> facet value -> score of the primary metric.
        more_breakdowns: another metric -> facet -> facet value -> its score.
        parse_failures: samples whose answer could not be parsed; they count as not correct.
        predictions_file: JSON lines beside the record, one a sample.
        predictions_sha256: hash of that file.
        definition: the resolved task recipe.
        metric_versions: metric name -> version of its definition.
    """

    primary: str
    column: str
    metrics: dict[str, Score]
    controls: dict[str, dict[str, Score]] = Field(default_factory=dict)
    breakdown: dict[str, dict[str, Score]] = Field(default_factory=dict)
    more_breakdowns: dict[str, dict[str, dict[str, Score]]] = Field(default_factory=dict)
    parse_failures: int = 0
    predictions_file: str
    predictions_sha256: str
    definition: dict[str, Any]
    metric_versions: dict[str, int] = Field(default_factory=dict)


class EncoderFacts(_Frozen):
    """Exactly which encoder stood in the run.

    `gflops` are of one image at the resolution that the catalogue states, a multiply-add counted as
    two operations; None where another resolution was used or the catalogue leaves it open.
    """

    name: str
    display_name: str
    source: str
    revision: str | None
    weights_sha256: str
    fingerprint: str
    pretrained: bool
    family: str
    supervision: Literal["fully", "weakly", "self", "none", "mixed"]
    pretraining_images: str
    parameters: int
    width: int
    tokens: int
    resolution: tuple[int, int]
    layer: tuple[int, ...]
    transform: str
    gflops: float | None = None


class LanguageModelFacts(_Frozen):
    """Exactly which language model stood in the run."""

    name: str
    source: str
    revision: str | None
    weights_sha256: str
    pretrained: bool
    parameters: int
    vocabulary: int


class PartProof(_Frozen):
    """What training did to one part (encoder, projector, llm).

    `relative_change` is ||after - before|| / ||before|| over all weights of the part, L2.
    """

    should_train: bool
    parameters: int
    trainable_parameters: int
    first_gradient_norm: float | None
    last_gradient_norm: float | None
    relative_change: float
    sha256_before: str
    sha256_after: str


class TrainingProof(_Frozen):
    """Evidence that what should train did, what should not did not, and what was saved is it."""

    parts: dict[str, PartProof]
    reload_identical: bool
    reload_max_difference: float


class RunRecord(_Frozen):
    """All that determines and describes one run's scores."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    created: str
    encoder: EncoderFacts
    joint: bool
    language_model: LanguageModelFacts
    adapter: dict[str, Any]
    visual_tokens: int
    data: dict[str, Any]
    training_data: dict[str, Any]
    seed: int
    limit: int | None
    tasks: dict[str, TaskScores]
    proof: TrainingProof
    training: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    seconds: dict[str, float]
    peak_memory_bytes: dict[str, int]
    command: str
    warnings: tuple[str, ...] = ()


def run_id(determinants: dict[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the hash of all that determines the score."""
    return hash_json(determinants)[:16]


def record_path(results: Path, identifier: str) -> Path:
    """Return where a run's record lies: `results/records/ID.json`."""
    return results / "records" / f"{identifier}.json"


def write_record(results: Path, record: RunRecord) -> Path:
    """Write a record with its own checksum, in one step, and return its path."""
    path = record_path(results, record.run_id)
    body = record.model_dump(mode="json")
    text = json.dumps({"sha256": hash_json(body), "record": body}, indent=1, ensure_ascii=False)
    write_text(path, text + "\n")
    return path


def read_record(path: Path) -> RunRecord:
    """Read one record and check its checksum and schema.

    Raises:
        RecordError: half-written, edited, or of another schema version; names the file.
    """
    try:
        outer = json.loads(path.read_text(encoding="utf-8"))
        body, checksum = outer["record"], outer["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: not a whole run record ({error})") from error
    if hash_json(body) != checksum:
        raise RecordError(f"{path}: checksum and content disagree; it was edited or damaged")
    try:
        return RunRecord.model_validate(_migrated(body, path))
    except ValidationError as error:
        raise RecordError(f"{path}: {error.error_count()} fields do not fit the schema") from error


def _migrated(body: Any, path: Path) -> dict[str, Any]:
    """Bring a record's body to the present schema, one version at a time."""
    version = body.get("schema_version") if isinstance(body, dict) else None
    while version != SCHEMA_VERSION:
        if not isinstance(version, int) or version not in MIGRATIONS:
            raise RecordError(
                f"{path}: schema version {version}, this program reads {SCHEMA_VERSION}; a newer "
                "encoder-bench may have written it"
            )
        body = MIGRATIONS[version](body)
        version += 1
        body["schema_version"] = version
    return dict(body)


def read_records(results: Path) -> list[RunRecord]:
    """Read every record under `results/records`, oldest first.

    Raises:
        RecordError: as `read_record`, for the first record that is damaged.
    """
    records = [read_record(path) for path in sorted((results / "records").glob("*.json"))]
    return sorted(records, key=lambda record: (record.created, record.run_id))
