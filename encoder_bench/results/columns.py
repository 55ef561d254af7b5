"""The table's columns: which score stands in which, and the optional ones.

What belongs here: names, units and how a column's number is read from records. Combining seeds and
intervals is the business of `estimates.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.base.record import RunRecord, TaskScores
from encoder_bench.metrics.metric import recorded_metric
from encoder_bench.results.estimates import mean_if_whole

SETTING, HALF, KIND = "Setting", "Joint Tuning", "Row"
SUPERVISION, ENCODER, IMAGES = "Supervision", "Visual Encoder", "Pretraining Images"
MARKS, SEEDS, RUNS = "Marks", "Seeds", "Runs"
AVERAGE = "Avg"
PUBLISHED = ("VQA Acc", "CIDEr", "SPICE", "OC Acc", "MCI Acc")
"""The published table's score columns, in its order, `Avg` aside."""

_RESERVED = {SETTING, HALF, KIND, SUPERVISION, ENCODER, IMAGES, MARKS, SEEDS, RUNS, AVERAGE}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a column's score stands in one record: a task and one of its metrics."""

    scores: TaskScores
    metric: str


def score_sources(record: RunRecord) -> dict[str, Source]:
    """Return column -> where its score stands in the record.

    Each task fills the column that its recipe names; a metric called `spice` fills SPICE. Where a
    task's column is taken, its own is `COLUMN (TASK)`.
    """
    sources: dict[str, Source] = {}
    for task, scores in record.tasks.items():
        taken = scores.column in sources or scores.column in _RESERVED
        column = f"{scores.column} ({task})" if taken else scores.column
        sources[column] = Source(scores, scores.primary)
    for scores in record.tasks.values():
        for metric in scores.metrics:
            if metric.casefold() == "spice":
                sources.setdefault("SPICE", Source(scores, metric))
    return sources


def higher_is_better(records: Iterable[RunRecord], column: str) -> bool | None:
    """Return whether a column's largest score is its best; None where no end is better."""
    sources = (score_sources(record).get(column) for record in records)
    source = next((each for each in sources if each is not None), None)
    return None if source is None else recorded_metric(source.metric).higher_is_better


def score_columns(records: Iterable[RunRecord]) -> list[str]:
    """Return the published score columns, then those of further tasks, by name."""
    found = {column for record in records for column in score_sources(record)}
    return [*PUBLISHED, *sorted(found - set(PUBLISHED))]


@dataclass(frozen=True, slots=True)
class ExtraColumn:
    """An optional column: one number a run, averaged over the seeds of a row.

    Attributes:
        header: as printed, with its unit.
        digits: decimals printed.
        read: a run's number, None where the record does not hold it.
        meaning: one line for a footnote.
    """

    header: str
    digits: int
    read: Callable[[RunRecord], float | None]
    meaning: str

    def of(self, records: Sequence[RunRecord]) -> float | None:
        """Return the mean over runs, None unless every run has the number."""
        return mean_if_whole([self.read(record) for record in records])


def _parse_failures(record: RunRecord) -> float | None:
    asked = sum(task.metrics[task.primary].samples for task in record.tasks.values())
    failed = sum(task.parse_failures for task in record.tasks.values())
    return 100.0 * failed / asked if asked else None


def _peak_memory(record: RunRecord) -> float | None:
    return max(record.peak_memory_bytes.values(), default=0) / 2**30 or None


def gflops(record: RunRecord) -> float | None:
    """Return GFLOPs of the encoder for one image, None where the record does not hold them."""
    return record.encoder.gflops


def device_hours(record: RunRecord) -> float | None:
    """Return hours of training times the devices used: GPU-hours where they were GPUs."""
    seconds = _number(record.seconds.get("training"))
    processes = _number(record.training.get("processes")) or 1.0
    return None if seconds is None else seconds * processes / 3600


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


EXTRA_COLUMNS: dict[str, ExtraColumn] = {
    "parameters": ExtraColumn(
        "Encoder parameters (M)",
        1,
        lambda record: record.encoder.parameters / 1e6,
        "parameters of the visual encoder",
    ),
    "gflops": ExtraColumn(
        "Encoder GFLOPs",
        2,
        gflops,
        "floating-point operations of the encoder for one image, a multiply-add counted as two",
    ),
    "device-hours": ExtraColumn(
        "Device-hours",
        2,
        device_hours,
        "hours of training times devices (GPU-hours on GPUs), on each run's own hardware",
    ),
    "visual-tokens": ExtraColumn(
        "Visual tokens",
        0,
        lambda record: float(record.visual_tokens),
        "tokens that the LLM reads for one image",
    ),
    "parse-failures": ExtraColumn(
        "Unparsed (%)",
        1,
        _parse_failures,
        "answers of all tasks that could not be parsed; they earn no credit",
    ),
    "training-seconds": ExtraColumn(
        "Training (s)",
        0,
        lambda record: _number(record.seconds.get("training")),
        "wall-clock seconds of training, on each run's own hardware",
    ),
    "peak-memory": ExtraColumn(
        "Peak memory (GiB)",
        2,
        _peak_memory,
        "the largest of the memories that the run watched",
    ),
    "throughput": ExtraColumn(
        "Training images/s",
        1,
        lambda record: _number(record.training.get("images_per_second")),
        "images trained on a second, on each run's own hardware",
    ),
}


def extra_columns(names: Sequence[str]) -> list[ExtraColumn]:
    """Return optional columns by name, in the order asked for.

    Raises:
        UnknownNameError: no such column; the nearest are suggested.
    """
    for name in names:
        if name not in EXTRA_COLUMNS:
            raise UnknownNameError("column", name, EXTRA_COLUMNS)
    return [EXTRA_COLUMNS[name] for name in dict.fromkeys(names)]


def half_width_column(column: str) -> str:
    """Return the name of the frame's column with a score's interval half-width."""
    return f"{column} ±"


def lift_column(column: str) -> str:
    """Return the name of the frame's column with a score less the best of its blind controls."""
    return f"{column} lift"


def samples_column(column: str) -> str:
    """Return the name of the frame's column with a score's sample count."""
    return f"{column} n"


def images_column(column: str) -> str:
    """Return the name of the frame's column with a score's image count."""
    return f"{column} images"


def rank_column(column: str) -> str:
    """Return the name of the frame's column with 1 (best), 2 (second best) or nothing."""
    return f"{column} rank"


def reason_column(column: str) -> str:
    """Return the name of the frame's column that says why a score is n/a."""
    return f"{column} reason"


def tied_column(column: str) -> str:
    """Return the name of the frame's column that says whether a row ties with the best."""
    return f"{column} tied"
