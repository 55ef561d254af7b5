"""All results as one pandas DataFrame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from encoder_bench.base.record import RunRecord, Score, read_records
from encoder_bench.tasks.predictions import predictions_path

_COLUMNS = (
    "run_id", "created", "encoder", "encoder_name", "family", "supervision", "pretraining_images",
    "encoder_pretrained", "encoder_parameters", "joint", "adapter", "llm", "llm_pretrained", "data",
    "training_data", "seed", "limit", "visual_tokens", "seconds", "peak_memory_bytes", "task",
    "column", "control", "metric", "primary", "value", "low", "high", "samples", "images",
    "parse_failures", "reason", "predictions",
)  # fmt: skip


def load_results(results: str | Path = "results") -> pd.DataFrame:
    """Return every recorded score, one a row, from a results folder's records.

    Args:
        results: the folder that holds `records/`.

    Returns:
        One row for each run, task, control (empty for the model itself) and metric: what ran
        (`run_id`, `encoder`, `joint`, `adapter`, `llm`, `data`, `seed`...), `value` with its 95%
        interval `low` and `high` in percent (NaN where n/a, with `reason`), `samples`, `images`,
        whether the metric is the task's `primary`, and the path of the `predictions` file.

    Raises:
        RecordError: a record is half-written, edited or of another schema version.

    Example:
        `load_results().query("primary and control == ''").pivot_table("value", "encoder",
        "column")`
    """
    folder = Path(results)
    rows = [row for record in read_records(folder) for row in _rows(record, folder)]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _rows(record: RunRecord, folder: Path) -> Iterator[dict[str, Any]]:
    facts = _facts(record)
    for task, scores in record.tasks.items():
        of_task = facts | {
            "task": task,
            "column": scores.column,
            "parse_failures": scores.parse_failures,
            "predictions": str(predictions_path(folder, record, task)),
        }
        for control, metrics in {"": scores.metrics, **scores.controls}.items():
            for metric, score in metrics.items():
                primary = metric == scores.primary
                yield (
                    of_task
                    | _score(score)
                    | {
                        "control": control,
                        "metric": metric,
                        "primary": primary,
                    }
                )


def _facts(record: RunRecord) -> dict[str, Any]:
    encoder, model = record.encoder, record.language_model
    return {
        "run_id": record.run_id,
        "created": record.created,
        "encoder": encoder.display_name,
        "encoder_name": encoder.name,
        "family": encoder.family,
        "supervision": encoder.supervision,
        "pretraining_images": encoder.pretraining_images,
        "encoder_pretrained": encoder.pretrained,
        "encoder_parameters": encoder.parameters,
        "joint": record.joint,
        "adapter": str(record.adapter.get("name", "")),
        "llm": model.name,
        "llm_pretrained": model.pretrained,
        "data": str(record.data.get("name", "")),
        "training_data": str(record.training_data.get("name", "")),
        "seed": record.seed,
        "limit": record.limit,
        "visual_tokens": record.visual_tokens,
        "seconds": sum(record.seconds.values()),
        "peak_memory_bytes": max(record.peak_memory_bytes.values(), default=None),
    }


def _score(score: Score) -> dict[str, Any]:
    return {
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "samples": score.samples,
        "images": score.images,
        "reason": score.reason or "",
    }
