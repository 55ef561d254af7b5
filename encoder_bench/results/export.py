"""Results for other programs: DataFrames of scores and answers, Parquet, lm-eval JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from encoder_bench.base.files import atomic_path
from encoder_bench.base.paths import RESULTS
from encoder_bench.base.record import RunRecord, Score, read_records
from encoder_bench.metrics.metric import recorded_metric
from encoder_bench.tasks.predictions import predictions_path, read_controls

_SCORE_COLUMNS = (
    "run_id", "created", "encoder", "encoder_name", "family", "supervision", "pretraining_images",
    "encoder_pretrained", "encoder_parameters", "joint", "adapter", "llm", "llm_pretrained", "data",
    "training_data", "seed", "limit", "visual_tokens", "seconds", "peak_memory_bytes", "task",
    "column", "control", "metric", "primary", "value", "low", "high", "samples", "images",
    "parse_failures", "reason", "predictions",
)  # fmt: skip


def load_results(results: str | Path = RESULTS) -> pd.DataFrame:
    """Return every recorded score, one per row, from a results folder's records.

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
    folder = Path(results).expanduser()
    rows = [row for record in read_records(folder) for row in _score_rows(record, folder)]
    return pd.DataFrame(rows, columns=list(_SCORE_COLUMNS))


def _score_rows(record: RunRecord, folder: Path) -> Iterator[dict[str, Any]]:
    facts = _facts(record)
    for task, scores in record.tasks.items():
        of_task = {
            "task": task,
            "column": scores.column,
            "parse_failures": scores.parse_failures,
            "predictions": str(predictions_path(folder, record, task)),
        }
        for control, metrics in {"": scores.metrics, **scores.controls}.items():
            for metric, score in metrics.items():
                which = {"control": control, "metric": metric, "primary": metric == scores.primary}
                numbers = asdict(score) | {"reason": score.reason or ""}
                yield facts | of_task | which | numbers


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
        "seconds": sum(each for phase, each in record.seconds.items() if phase != "encoding"),
        "peak_memory_bytes": max(record.peak_memory_bytes.values(), default=None),
    }


def all_predictions(results: Path, records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return every answer of some runs, one per row, blind baselines included.

    Columns: `run_id`, `encoder`, `joint`, `seed`, `task`, `control`, `sample_id`, `image_id`,
    `question`, `prompt`, `prediction`, `choice`, `parsed`, `outcome`, `references` (a list), and
    `score: METRIC` each.

    Raises:
        RecordError: predictions are missing or damaged.
    """
    rows = [
        row
        for record in records
        for task in record.tasks
        for row in _prediction_rows(results, record, task)
    ]
    return pd.DataFrame(rows)


def _prediction_rows(results: Path, record: RunRecord, task: str) -> Iterator[dict[str, Any]]:
    run = {
        "run_id": record.run_id,
        "encoder": record.encoder.display_name,
        "joint": record.joint,
        "seed": record.seed,
        "task": task,
    }
    for control, found in read_controls(results, record, task).items():
        for each in found:
            answer = each.model_dump(exclude={"scores", "control"})
            yield {
                **run,
                "control": control or "",
                **answer,
                "image_id": str(each.image_id),
                "parsed": None if each.parsed is None else str(each.parsed),
                "references": list(each.references),
                **{f"score: {metric}": score for metric, score in each.scores.items()},
            }


def export_parquet(results: Path, records: Sequence[RunRecord], target: Path) -> Path:
    """Write `all_predictions` as one Parquet file, in one step.

    Raises:
        RecordError: predictions are missing or damaged.
        EncoderBenchError: the file cannot be written.
    """
    frame = all_predictions(results, records)
    with atomic_path(target) as temporary:
        frame.to_parquet(temporary, index=False)
    return target


def export_harness(record: RunRecord) -> dict[str, Any]:
    """Return a run's scores in the shape of lm-evaluation-harness's results JSON.

    `results[task]["METRIC,none"]` is the value, as a fraction where it is recorded in percent, and
    `METRIC_stderr,none` the width of the 95% interval over 2 x 1.96 (its standard error, were it
    normal); n/a is null.
    """
    tasks = record.tasks
    counts = {task: scores.metrics[scores.primary].samples for task, scores in tasks.items()}
    return {
        "results": {
            task: {"alias": scores.column} | _harness_scores(scores.metrics)
            for task, scores in tasks.items()
        },
        "versions": {
            task: max(scores.metric_versions.values(), default=1) for task, scores in tasks.items()
        },
        "higher_is_better": {
            task: {name: recorded_metric(name).higher_is_better for name in scores.metrics}
            for task, scores in tasks.items()
        },
        "n-shot": dict.fromkeys(tasks, 0),
        "n-samples": {task: {"original": n, "effective": n} for task, n in counts.items()},
        "config": {
            "model": "encoder-bench",
            "model_args": f"encoder={record.encoder.name},joint={record.joint},"
            f"llm={record.language_model.name},adapter={record.adapter.get('name')}",
            "limit": record.limit,
            "random_seed": record.seed,
        },
        "configs": {task: scores.definition for task, scores in tasks.items()},
        "date": record.created,
        "run_id": record.run_id,
    }


def _harness_scores(metrics: dict[str, Score]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for metric, score in metrics.items():
        unit = 1.0 if recorded_metric(metric).unit == "count" else 100.0
        error = None
        if score.low is not None and score.high is not None:
            error = (score.high - score.low) / (2 * 1.96) / unit
        found[f"{metric},none"] = None if score.value is None else score.value / unit
        found[f"{metric}_stderr,none"] = error
    return found
