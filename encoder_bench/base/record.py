"""The run record: one JSON file a run, schema-versioned, checksummed, written in one step.

What belongs here: the whole schema and its reading and writing. The parts that lower floors fill in
are `record_parts.py`'s. Tables and comparisons are made from records by the other modules of this
folder and never read anything else.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from encoder_bench.base.errors import RecordError
from encoder_bench.base.files import write_text
from encoder_bench.base.hashing import hash_json, hash_text
from encoder_bench.base.record_parts import (
    EncoderFacts,
    LanguageModelFacts,
    PartProof,
    RecordPart,
    Score,
    TaskScores,
    TrainingProof,
)

__all__ = [
    "MIGRATIONS",
    "SCHEMA_VERSION",
    "EncoderFacts",
    "LanguageModelFacts",
    "PartProof",
    "RunRecord",
    "Score",
    "TaskScores",
    "TrainingProof",
    "no_collection",
    "read_record",
    "read_records",
    "record_path",
    "run_id",
    "write_record",
]

SCHEMA_VERSION = 1

Migration = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: Mapping[int, Migration] = {}
"""Schema version -> what turns a record's body of that version into one of the next.

A change of the schema that old records do not fit raises `SCHEMA_VERSION` and adds its migration
here, so that every record ever written can be read.
"""


class RunRecord(RecordPart):
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


_HEAD = '{\n "sha256": "'
_TAIL = "\n}\n"


def _head(content: str, text: str) -> str:
    """Return what stands before the record in its file, from the checksums of both."""
    return f'{_HEAD}{content}",\n "text_sha256": "{text}",\n "record": '


def write_record(results: Path, record: RunRecord) -> Path:
    """Write a record with its own checksums, in one step, and return its path.

    One checksum is of the content, whatever the file's layout; the other, of the first and of the
    record's text as it stands in the file, is quick to check.
    """
    path = record_path(results, record.run_id)
    body = record.model_dump(mode="json")
    text = json.dumps(body, indent=1, ensure_ascii=False).replace("\n", "\n ")
    content = hash_json(body)
    write_text(path, _head(content, hash_text(content, text)) + text + _TAIL)
    return path


def read_record(path: Path) -> RunRecord:
    """Read one record and check its checksum and schema.

    Raises:
        RecordError: half-written, edited, or of another schema version; names the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        record = _as_written(text)
        if record is not None:
            return record
        outer = json.loads(text)
        body, checksum = outer["record"], outer["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: not a whole run record ({error})") from error
    if hash_json(body) != checksum:
        raise RecordError(f"{path}: checksum and content disagree; it was edited or damaged")
    try:
        return RunRecord.model_validate(_migrated(body, path))
    except ValidationError as error:
        raise RecordError(f"{path}: {error.error_count()} fields do not fit the schema") from error


def _as_written(text: str) -> RunRecord | None:
    """Return the record of a file that stands as `write_record` left it, else None.

    The checksum is taken of the file's own text, and the text is read straight into the record, in
    half the time that it takes to build values from it and to write them down again. An older or
    rearranged file, one of another schema and a damaged one are left to who asked.
    """
    start = len(_head("0" * 64, "0" * 64))
    body = text[start:].removesuffix(_TAIL)
    content = text[len(_HEAD) :][:64]
    head = _head(content, hash_text(content, body))
    if text[:start] != head or not text.endswith(_TAIL):
        return None
    try:
        record = RunRecord.model_validate_json(body)
    except ValidationError:
        return None
    told = "schema_version" in record.model_fields_set
    return record if told and record.schema_version == SCHEMA_VERSION else None


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
    with no_collection():
        records = [read_record(path) for path in sorted((results / "records").glob("*.json"))]
    return sorted(records, key=lambda record: (record.created, record.run_id))


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python from looking for garbage among records that are all kept: a third of the time.

    What nothing refers to is freed all the same, cycles aside.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
