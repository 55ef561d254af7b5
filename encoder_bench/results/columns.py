"""The table's columns: where each score is in a record, and the optional columns."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.base.record import RunRecord, TaskScores
from encoder_bench.metrics.metric import recorded_metric

SETTING, JOINT, KIND = "Setting", "Joint Tuning", "Row"
SUPERVISION, ENCODER, IMAGES = "Supervision", "Visual Encoder", "Pretraining Images"
OVER_TWIN = "over random twin"
"""After a score column's name: what it gains over the untrained architecture."""
MARKS, SEEDS, RUNS = "Marks", "Seeds", "Runs"
AVERAGE, MEAN_RANK = "Avg", "Mean Rank"
PUBLISHED = ("VQA Acc", "CIDEr", "SPICE", "OC Acc", "MCI Acc")
"""The published table's score columns, in its order, without `Avg`."""

_RESERVED = {SETTING, JOINT, KIND, SUPERVISION, ENCODER, IMAGES, MARKS, SEEDS, RUNS}
_RESERVED |= {AVERAGE, MEAN_RANK}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a column's score is in one record: a task and one of its metrics."""

    task: str
    scores: TaskScores
    metric: str


def score_sources(record: RunRecord) -> dict[str, Source]:
    """Return column -> where its score is in the record.

    Each task fills the column that its recipe names; a metric called `spice` fills SPICE. Where
    the column is taken, the task's own is `COLUMN (TASK)`.
    """
    sources: dict[str, Source] = {}
    for task, scores in record.tasks.items():
        taken = scores.column in sources or scores.column in _RESERVED
        column = f"{scores.column} ({task})" if taken else scores.column
        sources[column] = Source(task, scores, scores.primary)
    for task, scores in record.tasks.items():
        for metric in scores.metrics:
            if metric.casefold() == "spice":
                sources.setdefault("SPICE", Source(task, scores, metric))
    return sources


def higher_is_better(records: Iterable[RunRecord], column: str) -> bool | None:
    """Return whether a column's largest score is its best; None where no end is better."""
    if column == AVERAGE:
        return True
    sources = (score_sources(record).get(column) for record in records)
    source = next((each for each in sources if each is not None), None)
    return None if source is None else recorded_metric(source.metric).higher_is_better


def bounds(records: Iterable[RunRecord], column: str) -> tuple[float, float]:
    """Return the least and the largest score that a column can hold: 0 to 100 of accuracies."""
    sources = (score_sources(record).get(column) for record in records)
    metrics = (recorded_metric(each.metric) for each in sources if each is not None)
    metric = next(metrics, None)
    percent = metric is not None and metric.unit == "percent" and not metric.graded
    return 0.0, 100.0 if percent else math.inf


def score_columns(records: Iterable[RunRecord]) -> list[str]:
    """Return the columns of the tasks that were run, the published first, and then `Avg`."""
    found = {column for record in records for column in score_sources(record)}
    published = [column for column in PUBLISHED if column in found]
    return [*published, *sorted(found - set(PUBLISHED)), AVERAGE]


@dataclass(frozen=True, slots=True)
class ExtraColumn:
    """An optional column: one number per run, averaged over the seeds of a row.

    Attributes:
        header: as printed, with its unit.
        digits: decimals printed.
        meaning: one line for a footnote.
        read: a run's number, None where the record does not hold it.
    """

    header: str
    digits: int
    meaning: str
    read: Callable[[RunRecord], float | None]

    def mean(self, records: Sequence[RunRecord]) -> float | None:
        """Return the mean over runs, None unless every run has the number."""
        return mean_if_whole([self.read(record) for record in records])


def mean_if_whole(values: Sequence[float | None]) -> float | None:
    """Return the mean, None where a value is None or there are none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def device_hours(record: RunRecord) -> float | None:
    """Return hours of training times the devices used: GPU-hours where they were GPUs."""
    seconds = _number(record.seconds.get("training"))
    processes = _number(record.training.get("processes")) or 1.0
    return None if seconds is None else seconds * processes / 3600


def _parse_failures(record: RunRecord) -> float | None:
    samples = sum(task.metrics[task.primary].samples for task in record.tasks.values())
    failed = sum(task.parse_failures for task in record.tasks.values())
    return 100.0 * failed / samples if samples else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


EXTRA_COLUMNS = {
    "parameters": ExtraColumn(
        "Encoder parameters (M)", 1, "parameters of the visual encoder",
        lambda record: record.encoder.parameters / 1e6,
    ),
    "gflops": ExtraColumn(
        "Encoder GFLOPs", 2,
        "floating-point operations of the encoder per image, a multiply-add counted as two",
        lambda record: record.encoder.gflops,
    ),
    "device-hours": ExtraColumn(
        "Device-hours", 2,
        "hours of training times devices (GPU-hours on GPUs), on each run's own hardware",
        device_hours,
    ),
    "visual-tokens": ExtraColumn(
        "Visual tokens", 0, "tokens that the LLM reads per image",
        lambda record: float(record.visual_tokens),
    ),
    "parse-failures": ExtraColumn(
        "Unparsed (%)", 1, "answers of all tasks that could not be parsed; they earn no credit",
        _parse_failures,
    ),
    "training-seconds": ExtraColumn(
        "Training (s)", 0, "wall-clock seconds of training, on each run's own hardware",
        lambda record: _number(record.seconds.get("training")),
    ),
    "peak-memory": ExtraColumn(
        "Peak memory (GiB)", 2, "the largest of the memories that the run watched",
        lambda record: max(record.peak_memory_bytes.values(), default=0) / 2**30 or None,
    ),
    "throughput": ExtraColumn(
        "Training images/s", 1, "training images per second, on each run's own hardware",
        lambda record: _number(record.training.get("images_per_second")),
    ),
}  # fmt: skip


def extra_columns(names: Sequence[str]) -> list[ExtraColumn]:
    """Return optional columns by name, in the order given.

    Raises:
        UnknownNameError: no such column; the nearest are suggested.
    """
    for name in names:
        if name not in EXTRA_COLUMNS:
            raise UnknownNameError("column", name, EXTRA_COLUMNS)
    return [EXTRA_COLUMNS[name] for name in dict.fromkeys(names)]
