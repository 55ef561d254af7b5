"""Looking after a results folder: find, list, remove and export runs.

What belongs here: what `encoder-bench results` does. Nothing here changes a record.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder_bench.base.errors import RecordError
from encoder_bench.base.files import atomic_path
from encoder_bench.base.record import RunRecord, Score, read_record, record_path
from encoder_bench.metrics.metric import recorded_metric
from encoder_bench.tasks.predictions import read_controls

if TYPE_CHECKING:
    import pandas as pd


_ENCODER_MODE = re.compile(r"(.+)/(frozen|joint)(?:/(\d+))?")


@dataclass(frozen=True, slots=True)
class Inventory:
    """The readable records of a folder, oldest first, and one line for each that is damaged."""

    records: tuple[RunRecord, ...]
    damaged: tuple[str, ...]


def inventory(results: Path) -> Inventory:
    """Return every record of a results folder; damaged ones are named instead of raised."""
    records, damaged = [], []
    for path in sorted((results / "records").glob("*.json")):
        try:
            records.append(read_record(path))
        except RecordError as error:
            damaged.append(str(error))
    records.sort(key=lambda record: (record.created, record.run_id))
    return Inventory(tuple(records), tuple(damaged))


def find_run(results: Path, name: str) -> RunRecord:
    """Return the run that `name` means.

    Args:
        results: the results folder.
        name: an id or its beginning, `ENCODER/MODE` or `ENCODER/MODE/SEED` (`dinov2-l/joint/0`),
            or the path of a record file.

    Raises:
        RecordError: no such run, more than one, or a damaged record.
    """
    if name.endswith(".json"):
        return read_record(Path(name))
    match = _ENCODER_MODE.fullmatch(name)
    if match:
        return _named_run(results, name, match)
    paths = sorted((results / "records").glob("*.json"))
    found = [path for path in paths if name and path.stem.startswith(name)]
    if not found:
        known = ", ".join(path.stem for path in paths[:8]) or "none"
        raise RecordError(f"{results}: no run '{name}'; runs there: {known}")
    if len(found) > 1:
        raise RecordError(
            f"{results}: '{name}' begins {len(found)} runs "
            f"({', '.join(path.stem for path in found[:4])}); give more digits"
        )
    return read_record(found[0])


def _named_run(results: Path, name: str, match: re.Match[str]) -> RunRecord:
    encoder, mode, seed = match.groups()
    of_encoder = [r for r in inventory(results).records if r.encoder.name == encoder]
    found = [r for r in of_encoder if r.joint == (mode == "joint")]
    if seed is not None:
        found = [r for r in found if r.seed == int(seed)]
    if not found:
        raise RecordError(f"{results}: no run '{name}'; `encoder-bench results ls` lists them")
    if len(found) > 1:
        these = ", ".join(f"{r.run_id[:8]} (seed {r.seed})" for r in found[:6])
        raise RecordError(f"{results}: '{name}' means {len(found)} runs; choose one of {these}")
    return found[0]


def remove_runs(results: Path, names: Sequence[str]) -> list[str]:
    """Remove runs: record, predictions, checkpoints. Nothing is removed unless all are found.

    A record goes first, so that a kill leaves files without a record and never the reverse.

    Returns:
        The ids removed.

    Raises:
        RecordError: a run does not exist or is ambiguous.
    """
    identifiers = [find_run(results, name).run_id for name in names]
    for identifier in identifiers:
        record_path(results, identifier).unlink(missing_ok=True)
        for room in ("predictions", "checkpoints"):
            shutil.rmtree(results / room / identifier, ignore_errors=True)
    return identifiers


def all_predictions(results: Path, records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return every answer of some runs, one a row, blind controls included.

    Columns: `run_id`, `encoder`, `joint`, `seed`, `task`, `control`, `sample_id`, `image_id`,
    `question`, `prompt`, `prediction`, `choice`, `parsed`, `outcome`, `references` (a list), and
    `score: METRIC` each.

    Raises:
        RecordError: predictions are missing or damaged.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for record in records:
        for task in record.tasks:
            rows += _prediction_rows(results, record, task)
    return pd.DataFrame(rows)


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
    results: dict[str, dict[str, Any]] = {}
    for task, scores in record.tasks.items():
        entry: dict[str, Any] = {"alias": scores.column}
        for metric, score in scores.metrics.items():
            unit = 1.0 if recorded_metric(metric).unit == "count" else 100.0
            entry[f"{metric},none"] = None if score.value is None else score.value / unit
            entry[f"{metric}_stderr,none"] = _standard_error(score, unit)
        results[task] = entry
    counts = {task: s.metrics[s.primary].samples for task, s in record.tasks.items()}
    return {
        "results": results,
        "versions": {
            task: max(scores.metric_versions.values(), default=1)
            for task, scores in record.tasks.items()
        },
        "higher_is_better": {
            task: {name: recorded_metric(name).higher_is_better for name in scores.metrics}
            for task, scores in record.tasks.items()
        },
        "n-shot": dict.fromkeys(record.tasks, 0),
        "n-samples": {task: {"original": n, "effective": n} for task, n in counts.items()},
        "config": {
            "model": "encoder-bench",
            "model_args": f"encoder={record.encoder.name},joint={record.joint},"
            f"llm={record.language_model.name},adapter={record.adapter.get('name')}",
            "limit": record.limit,
            "random_seed": record.seed,
        },
        "configs": {task: scores.definition for task, scores in record.tasks.items()},
        "date": record.created,
        "run_id": record.run_id,
    }


def _standard_error(score: Score, unit: float) -> float | None:
    if score.low is None or score.high is None:
        return None
    return (score.high - score.low) / (2 * 1.96) / unit


def _prediction_rows(results: Path, record: RunRecord, task: str) -> list[dict[str, Any]]:
    shared = {
        "run_id": record.run_id,
        "encoder": record.encoder.display_name,
        "joint": record.joint,
        "seed": record.seed,
        "task": task,
    }
    return [
        shared
        | {
            "control": control or "",
            "sample_id": each.sample_id,
            "image_id": str(each.image_id),
            "question": each.question,
            "prompt": each.prompt,
            "prediction": each.prediction,
            "choice": each.choice,
            "parsed": None if each.parsed is None else str(each.parsed),
            "outcome": each.outcome,
            "references": list(each.references),
        }
        | {f"score: {metric}": score for metric, score in each.scores.items()}
        for control, found in read_controls(results, record, task).items()
        for each in found
    ]
