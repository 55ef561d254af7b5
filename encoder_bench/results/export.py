"""Results for others: DataFrames of scores and answers, Parquet, lm-eval JSON, model cards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.files import atomic_path
from encoder_bench.base.paths import RESULTS, with_home
from encoder_bench.base.record import RunRecord, Score, read_records
from encoder_bench.encoders.registry import find_spec
from encoder_bench.metrics.metric import recorded_metric
from encoder_bench.results.formats import FORMATS, templates
from encoder_bench.results.score import score_sources, training_seconds
from encoder_bench.results.table import build_tables
from encoder_bench.tasks.predictions import predictions_path, read_controls

if TYPE_CHECKING:
    import pandas as pd

_FACTS: dict[str, Callable[[RunRecord], Any]] = {
    "run_id": lambda run: run.run_id,
    "created": lambda run: run.created,
    "encoder": lambda run: run.encoder.display_name,
    "encoder_name": lambda run: run.encoder.name,
    "family": lambda run: run.encoder.family,
    "supervision": lambda run: run.encoder.supervision,
    "pretraining_images": lambda run: run.encoder.pretraining_images,
    "encoder_pretrained": lambda run: run.encoder.pretrained,
    "encoder_parameters": lambda run: run.encoder.parameters,
    "joint": lambda run: run.joint,
    "adapter": lambda run: str(run.adapter.get("name", "")),
    "llm": lambda run: run.language_model.name,
    "llm_pretrained": lambda run: run.language_model.pretrained,
    "data": lambda run: str(run.data.get("name", "")),
    "training_data": lambda run: str(run.training_data.get("name", "")),
    "seed": lambda run: run.seed,
    "limit": lambda run: run.limit,
    "visual_tokens": lambda run: run.visual_tokens,
    "seconds": lambda run: _seconds(run),
    "peak_memory_bytes": lambda run: max(run.peak_memory_bytes.values(), default=None),
}
_SCORE_COLUMNS = (
    *_FACTS,
    *("task", "column", "control", "metric", "primary", "value", "low", "high", "samples"),
    *("images", "parse_failures", "reason", "predictions"),
)
_HUB_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "CC-BY-NC-4.0": "cc-by-nc-4.0"}
_PERMISSIVE = ("bundled:", "hub:HuggingFaceTB/SmolLM2")
"""Sources of LLMs under Apache-2.0, which leave the encoder's licence as it is."""


def _seconds(run: RunRecord) -> float:
    """Return how long a run took, without encoding; of a resumed one all steps count."""
    phases = {phase: s for phase, s in run.seconds.items() if phase != "encoding"}
    phases["training"] = max(phases.get("training", 0.0), training_seconds(run) or 0.0)
    return sum(phases.values())


def load_results(results: str | Path = RESULTS) -> pd.DataFrame:
    """Return every recorded score, one per row, from a results folder's records.

    There is one row for each run, task, control (empty for the model itself) and metric: what ran
    (`run_id`, `encoder`, `joint`, `adapter`, `llm`, `data`, `seed`...), `value` with its 95%
    interval `low` and `high` in percent (NaN where n/a, with `reason`), `samples`, `images`,
    whether the metric is the task's `primary`, and the path of the `predictions` file.

    Raises:
        RecordError: a record is half-written, edited or of another schema version.

    Example:
        `load_results().query("primary and control == ''").pivot_table("value", "encoder",
        "column")`
    """
    import pandas as pd

    folder = with_home(results)
    rows = [row for record in read_records(folder) for row in _score_rows(record, folder)]
    return pd.DataFrame(rows, columns=list(_SCORE_COLUMNS))


def _score_rows(record: RunRecord, folder: Path) -> Iterator[dict[str, Any]]:
    facts = {name: read(record) for name, read in _FACTS.items()}
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


def all_predictions(results: Path, records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return every answer of some runs, one per row, blind baselines included.

    Columns: `run_id`, `encoder`, `joint`, `seed`, `task`, `control`, `sample_id`, `image_id`,
    `question`, `prompt`, `prediction`, `choice`, `parsed`, `outcome`, `references` (a list), and
    `score: METRIC` each. Raises as `read_controls`.
    """
    import pandas as pd

    rows = [
        row
        for record in records
        for task in record.tasks
        for row in _prediction_rows(results, record, task)
    ]
    return pd.DataFrame(rows)


def _prediction_rows(results: Path, record: RunRecord, task: str) -> Iterator[dict[str, Any]]:
    run = {name: _FACTS[name](record) for name in ("run_id", "encoder", "joint", "seed")}
    for control, found in read_controls(results, record, task).items():
        for each in found:
            answer = each.model_dump(exclude={"scores", "control"})
            yield {
                **run,
                "task": task,
                "control": control or "",
                **answer,
                "image_id": str(each.image_id),
                "parsed": None if each.parsed is None else str(each.parsed),
                "references": list(each.references),
                **{f"score: {metric}": score for metric, score in each.scores.items()},
            }


def export_parquet(results: Path, records: Sequence[RunRecord], target: Path) -> Path:
    """Write `all_predictions` as one Parquet file, in one step; raises as they do.

    Raises:
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


def model_card(record: RunRecord) -> str:
    """Return the card in Markdown: scores, encoder and LLM, recipe, data, proof, hardware."""
    scores = FORMATS["md"](build_tables([record])).strip()
    text = templates().get_template("record.md.j2").render(record=record, scores=scores)
    return f"---\n{_metadata(record)}\n---\n{text}"


def record_sheet(record: RunRecord) -> str:
    """Return what a record holds beside its scores, in Markdown."""
    return templates().get_template("record.md.j2").render(record=record, scores="")


def _metadata(record: RunRecord) -> str:
    """Return the Hub's YAML: licence, models and data it was made from, its scores."""
    from huggingface_hub import EvalResult, ModelCardData

    mode = "jointly tuned" if record.joint else "frozen"
    data, training = (
        str(description.get("name", "unknown")).partition(":")[0]
        for description in (record.data, record.training_data)
    )
    scores = [
        EvalResult(
            task_type="image-text-to-text",
            task_name=source.task,
            dataset_type=data,
            dataset_name=data,
            metric_type=source.metric,
            metric_name=column,
            metric_value=round(value, 2),
        )
        for column, source in score_sources(record).items()
        if (value := source.scores.metrics[source.metric].value) is not None
    ]
    sources = [each.source.partition(":") for each in (record.encoder, record.language_model)]
    licence = _licence(record)
    hub = _HUB_LICENCES.get(licence)
    card = ModelCardData(
        model_name=f"{record.encoder.display_name}, {mode}, {record.language_model.name}",
        license=hub or "other",
        license_name=None if hub else licence,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["encoder-bench", "llava"],
        base_model=[name.partition("@")[0] for form, _, name in sources if form in ("hf", "hub")]
        or None,
        datasets=[training],
        eval_results=scores,
    )
    return str(card.to_yaml())


def _licence(record: RunRecord) -> str:
    """Return the encoder's licence, and that the LLM has its own where it may be another."""
    try:
        own = find_spec(record.encoder.name).licence
    except EncoderBenchError:
        own = "unknown"
    llm = record.language_model
    return own if llm.source.startswith(_PERMISSIVE) else f"encoder {own}; LLM as {llm.name}"
