"""The run record: one JSON file per run, schema-versioned, checksummed, written in one step.

python -m encoder_bench.base.record     writes docs/record.schema.json
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from encoder_bench.base.errors import RecordError
from encoder_bench.base.files import write_text
from encoder_bench.base.hashing import hash_json, hash_text
from encoder_bench.base.paths import visible

MODES = ("frozen", "joint")
"""Whether the encoder was tuned, in a word: `MODES[joint]`."""
SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).resolve().parents[2] / "docs" / "record.schema.json"

Migration = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: Mapping[int, Migration] = {}
"""Schema version -> function from a record's body of that version to one of the next.

A schema change that old records do not fit raises `SCHEMA_VERSION` and adds its migration here, so
that every record ever written can be read.
"""


class RecordPart(BaseModel):
    """A part of a record: immutable; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(config=ConfigDict(extra="forbid"), frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of one task.

    `value`, `low` and `high` are in the metric's own unit (accuracy and CIDEr in percent);
    `low` and `high` are a 95% interval clustered on images. A metric that could not be
    computed has `value` None and says why in `reason`; it is never 0.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    samples: int
    images: int
    reason: str | None = None


class TaskScores(RecordPart):
    """A task's scores, those of its blind controls, and its breakdowns.

    Attributes:
        primary: the metric shown in the table, under `column` (`VQA Acc`).
        metrics: metric name -> score.
        controls: control name (`no-image`, `constant`...) -> metric name -> score.
        breakdown: facet -> facet value -> score of the primary metric.
        more_breakdowns: another metric -> facet -> facet value -> its score.
        parse_failures: samples whose answer could not be parsed; they count as wrong.
        predictions_file: JSON lines beside the record, one per sample; `predictions_sha256` is its
            hash.
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


class EncoderFacts(RecordPart):
    """Exactly which encoder ran.

    `gflops` is per image at this resolution, a multiply-add counted as two operations: from the
    catalogue where it has them, else counted; None in records older than the count.
    `remote_code`: whether the repository's own Python code ran (`--trust-remote-code`).
    """

    name: str
    display_name: str
    source: str
    revision: str | None
    weights_sha256: str
    fingerprint: str
    pretrained: bool
    family: str
    supervision: Literal["fully", "weakly", "self", "mixed", "unknown", "none"]
    pretraining_images: str
    parameters: int
    width: int
    tokens: int
    resolution: tuple[int, int]
    layer: tuple[int, ...]
    transform: str
    gflops: float | None = None
    remote_code: bool = False


class LanguageModelFacts(RecordPart):
    """Exactly which language model ran.

    `template` is the text around questions and answers, as the chat template was rendered: what
    comes before a question (`head`), before its answer (`tail`), after it (`end`), and before the
    next question (`between`). None for plain text, and in records older than the field.
    `end_token` is taught after each answer; None in records older than the field.
    """

    name: str
    source: str
    revision: str | None
    weights_sha256: str
    pretrained: bool
    parameters: int
    vocabulary: int
    template: dict[str, str] | None = None
    end_token: str | None = None


class PartProof(RecordPart):
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


class TrainingProof(RecordPart):
    """Evidence that the right parts trained, and that the saved model is the trained one.

    `device_difference` is how far the loss and gradients of one image differed from the CPU's
    before training, as a share of them; measured on other devices than CPU and CUDA alone.
    """

    parts: dict[str, PartProof]
    reload_max_difference: float
    device_difference: float | None = None
    reload_identical: bool = Field(
        default=True, exclude=True, description="in older files; not written"
    )


class RunRecord(RecordPart):
    """All that determines and describes one run's scores.

    `image_loading` is how files became pixels, whatever the encoder: EXIF orientation, depth,
    transparency; empty in records older than the field.
    """

    schema_version: int = SCHEMA_VERSION
    run_id: str
    created: str
    encoder: EncoderFacts
    joint: bool
    language_model: LanguageModelFacts
    adapter: dict[str, Any]
    visual_tokens: int
    image_loading: str = ""
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

    @property
    def mode(self) -> str:
        """`frozen` or `joint`."""
        return MODES[self.joint]


def run_id(determinants: dict[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the hash of all that determines the score."""
    return hash_json(determinants)[:16]


def record_path(results: Path, identifier: str) -> Path:
    """Return the path of a run's record: `results/records/ID.json`."""
    return results / "records" / f"{identifier}.json"


def write_record(results: Path, record: RunRecord) -> Path:
    """Write a record with the checksum of its content, in one step, and return its path."""
    path, body = record_path(results, record.run_id), record.model_dump(mode="json")
    content = {"sha256": _checksum(body), "record": body}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def read_record(path: Path) -> RunRecord:
    """Read one record and check its checksum and schema.

    Raises:
        RecordError: half-written, edited, or of another schema version; names the file.
    """
    try:
        outer = orjson.loads(path.read_bytes())
        body, checksum = outer["record"], outer["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: not a whole run record ({error})") from error
    # Checksums of older records are over Python's notation of floats (1e-05 for 1e-5).
    if checksum != _checksum(body) and checksum != hash_json(body):
        raise RecordError(f"{path}: checksum and content disagree; it was edited or damaged")
    try:
        return RunRecord.model_validate(_migrated(body, path))
    except ValidationError as error:
        raise RecordError(f"{path}: {error.error_count()} fields do not fit the schema") from error


def _checksum(body: Any) -> str:
    return hash_text(orjson.dumps(body, option=orjson.OPT_SORT_KEYS).decode("utf-8"))


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
    """Read every record under `results/records`, oldest first; raises as `read_record`."""
    records = filter(None, map(read_own, visible(results / "records", "*.json")))
    return sorted(records, key=lambda record: (record.created, record.run_id))


def read_own(path: Path) -> RunRecord | None:
    """Return `read_record`, None for a copy beside the record that its name says it is not."""
    record = read_record(path)
    own = path.with_stem(record.run_id)
    return record if path == own or not own.is_file() else None


def require_records(results: Path) -> list[RunRecord]:
    """Return `read_records`, at least one.

    Raises:
        RecordError: there is none, or one is damaged.
    """
    if records := read_records(results):
        return records
    raise RecordError(f"{results}: no run records yet; make one with `encoder-bench run`")


def schema_text() -> str:
    """Return the JSON Schema of a record file, its checksum and its body, as it is published."""
    body = RunRecord.model_json_schema()
    definitions = body.pop("$defs")
    body["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    checksum = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"encoder-bench run record, schema version {SCHEMA_VERSION}",
        "type": "object",
        "required": ["sha256", "record"],
        "additionalProperties": False,
        "properties": {
            "sha256": checksum
            | {
                "description": "of the record as JSON with sorted keys and without spaces, "
                "prefixed by its length in bytes and a colon"
            },
            "text_sha256": checksum | {"description": "in older files; not read"},
            "record": body,
        },
        "$defs": definitions,
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_text(SCHEMA_FILE, schema_text())
