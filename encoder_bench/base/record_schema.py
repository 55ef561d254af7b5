"""The record's JSON Schema, as it is published beside the documentation.

What belongs here: one file a schema version, made from `record.py`. A change of the record that
leaves its version alone makes the test fail that compares the two.

    python -m encoder_bench.base.record_schema     writes docs/record.schema.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from encoder_bench.base.files import write_text
from encoder_bench.base.record import SCHEMA_VERSION, RunRecord

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "record.schema.json"


def record_schema() -> dict[str, Any]:
    """Return the JSON Schema of a record file: its checksum and its body."""
    body = RunRecord.model_json_schema()
    definitions = body.pop("$defs")
    body["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"encoder-bench run record, schema version {SCHEMA_VERSION}",
        "type": "object",
        "required": ["sha256", "record"],
        "additionalProperties": False,
        "properties": {
            "sha256": {
                "type": "string",
                "pattern": "^[0-9a-f]{64}$",
                "description": "of the record as JSON with sorted keys and without spaces, behind "
                "its length in bytes and a colon",
            },
            "text_sha256": {
                "type": "string",
                "pattern": "^[0-9a-f]{64}$",
                "description": "of sha256 and of the record's text as it stands in this file, each "
                "behind its length in bytes and a colon; a reader may check it instead",
            },
            "record": body,
        },
        "$defs": definitions,
    }


def schema_text() -> str:
    """Return the schema as the published file holds it."""
    return json.dumps(record_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_text(PUBLISHED, schema_text())
