"""The table's columns and cells: where a score is in a record, means over seeds and rows."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.base.record import RunRecord, Score, TaskScores
from encoder_bench.metrics.metric import Metric, recorded_metric
from encoder_bench.metrics.statistics import Difference, Variance
from encoder_bench.tasks.controls import CONTROLS

SETTING, JOINT, KIND = "Setting", "Joint Tuning", "Row"
SUPERVISION, ENCODER, IMAGES = "Supervision", "Visual Encoder", "Pretraining Images"
OVER_TWIN = "over random twin"
"""After a score column's name: what it gains over the untrained architecture."""
MARKS, SEEDS, RUNS = "Marks", "Seeds", "Runs"
AVERAGE, MEAN_RANK = "Avg", "Mean Rank"
PUBLISHED = ("VQA Acc", "CIDEr", "SPICE", "OC Acc", "MCI Acc")
"""The published table's score columns, in its order, without `Avg`."""
AVERAGED = ("VQA Acc", "CIDEr", "OC Acc", "MCI Acc")
"""The columns whose mean is `Avg`; SPICE is not among them, as in the published table."""
_RESERVED = {
    *(SETTING, JOINT, KIND, SUPERVISION, ENCODER, IMAGES),
    *(MARKS, SEEDS, RUNS, AVERAGE, MEAN_RANK),
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a column's score is in one record: a task and one of its metrics."""

    task: str
    scores: TaskScores
    metric: str


def score_sources(record: RunRecord) -> dict[str, Source]:
    """Return column -> where its score is in the record.

    Each task fills the column that its recipe names; a metric called `spice` fills SPICE. Where
    several name one column it is the alphabetically first one's, and the others' `COLUMN (TASK)`.
    """
    sources: dict[str, Source] = {}
    first = {scores.column: task for task, scores in sorted(record.tasks.items(), reverse=True)}
    for task, scores in record.tasks.items():
        taken = first[scores.column] != task or scores.column in _RESERVED
        column = f"{scores.column} ({task})" if taken else scores.column
        sources[column] = Source(task, scores, scores.primary)
    for task, scores in sorted(record.tasks.items()):
        for metric in scores.metrics:
            if metric.casefold() == "spice":
                sources.setdefault("SPICE", Source(task, scores, metric))
    return sources


def _metric(records: Iterable[RunRecord], column: str) -> Metric | None:
    """Return the metric of the first record that has the column."""
    for record in records:
        if source := score_sources(record).get(column):
            return recorded_metric(source.metric)
    return None


def higher_is_better(records: Iterable[RunRecord], column: str) -> bool | None:
    """Return whether a column's largest score is its best; None where no end is better."""
    if column == AVERAGE:
        return True
    metric = _metric(records, column)
    return None if metric is None else metric.higher_is_better


def bounds(records: Iterable[RunRecord], column: str) -> tuple[float, float]:
    """Return the least and the largest score that a column can hold: 0 to 100 of accuracies."""
    metric = _metric(records, column)
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


def mean_if_whole(values: Iterable[float | None]) -> float | None:
    """Return the mean, None where a value is None or there are none."""
    known: list[float] = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    return math.fsum(known) / len(known) if known else None


def training_seconds(record: RunRecord) -> float | None:
    """Return seconds of training steps, those before an interruption too."""
    phase = record.seconds.get("training")  # of the process that finished the run alone
    return _number(record.training.get("seconds", phase))


def device_hours(record: RunRecord) -> float | None:
    """Return hours of training times the devices used: GPU-hours where they were GPUs."""
    seconds = training_seconds(record)
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
        "hours of training steps times devices (GPU-hours on GPUs), on each run's own hardware",
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
        "Training (s)", 0, "wall-clock seconds of training steps, on each run's own hardware",
        training_seconds,
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


def extra_columns(names: Sequence[str]) -> tuple[ExtraColumn, ...]:
    """Return optional columns by name, in the order given.

    Raises:
        UnknownNameError: no such column; the nearest are suggested.
    """
    for name in names:
        if name not in EXTRA_COLUMNS:
            raise UnknownNameError("column", name, EXTRA_COLUMNS)
    return tuple(EXTRA_COLUMNS[name] for name in dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Cell:
    """One score of the table, in its metric's unit.

    Attributes:
        value: None where n/a.
        half_width: half of the 95% interval.
        samples: of one run; the fewest where seeds differ.
        reason: why the value is n/a.
        seed_share: share of the variance that comes from seeds, where there are several.
        lift: gain over the best blind baseline of the same run, the mean over runs.
        rank: 1 best, 2 second best in its mode, as printed.
        tied: whether it is not significantly worse than the best; None where not tested.
        over_twin: its difference to the encoder's random twin; None where there is none.
    """

    value: float | None
    half_width: float | None = None
    samples: int = 0
    images: int = 0
    reason: str = ""
    seed_share: float | None = None
    lift: float | None = None
    rank: int | None = None
    tied: bool | None = None
    over_twin: Difference | None = None


def missing(reason: str) -> Cell:
    """Return the cell of what was not or could not be measured."""
    return Cell(None, reason=reason)


def from_score(score: Score | None) -> Cell:
    """Return a recorded score as a cell."""
    if score is None:
        return missing("metric not computed")
    counts = score.samples, score.images
    if score.value is None or not math.isfinite(score.value):
        return Cell(None, None, *counts, score.reason or "not computed; no reason given")
    if score.low is None or score.high is None:
        return Cell(score.value, None, *counts)
    return Cell(score.value, (score.high - score.low) / 2, *counts)


def over_seeds(cells: Sequence[Cell]) -> Cell:
    """Return the mean over seeds, with an interval for a new sample of images and of seeds.

    All seeds answer the same test questions, so averaging does not shrink the sampling error: the
    half-width is sqrt(mean of squared half-widths + (t s / sqrt k)^2), where s is the standard
    deviation between the k seeds and t the 97.5% quantile of Student's t with k - 1 degrees of
    freedom. One seed keeps its own interval.

    >>> over_seeds([Cell(50.0, 2.0), Cell(50.0, 2.0)]).half_width
    2.0
    """
    if len(cells) == 1:
        return cells[0]
    for cell in cells:
        if cell.value is None:
            return missing(f"not measured in every seed: {cell.reason}")
    mean = _mean(cells)
    if mean.half_width is None:
        return mean
    widths = [cell.half_width for cell in cells if cell.half_width is not None]
    degrees = mean.images - 1 if mean.images > 1 else math.inf
    image = math.fsum(width**2 for width in widths) / len(widths)
    unit = Variance(1.0, degrees).half_width() ** 2
    values = np.array([cell.value for cell in cells], dtype=np.float64)
    seed = float(np.var(values, ddof=1)) / len(cells)
    variance = Variance(image / unit, degrees, seed, len(cells) - 1)
    return replace(mean, half_width=variance.half_width(), seed_share=variance.seed_share)


def over_rows(cells: Sequence[Cell]) -> Cell:
    """Return the mean of a blind baseline over rows.

    All rows answer the same questions, so half-widths are averaged too.
    """
    known = [cell for cell in cells if cell.value is not None]
    if known:
        return _mean(known)
    return missing(cells[0].reason if cells else "baseline not run on this task")


def average(cells: Mapping[str, Cell]) -> Cell:
    """Return `Avg`, the mean of the averaged columns; n/a where one of them is.

    The tasks may share images and one model answers them all, so their errors may be correlated;
    the half-width is the mean of the tasks' half-widths, which holds for any correlation.
    """
    chosen = {name: cells.get(name, missing("")) for name in AVERAGED}
    lifts = mean_if_whole(cell.lift for cell in chosen.values())
    if lacking := [f"no {name}" for name, cell in chosen.items() if cell.value is None]:
        return Cell(None, reason=", ".join(lacking), lift=lifts)
    return replace(_mean(list(chosen.values())), samples=0, images=0, lift=lifts)


def lift(source: Source) -> float | None:
    """Return by how much a score is better than the best of the run's own blind baselines."""
    metric, own = recorded_metric(source.metric), source.scores.metrics.get(source.metric)
    controls = [s for name, s in source.scores.controls.items() if CONTROLS[name].counts]
    blind = [scores[source.metric].value for scores in controls if source.metric in scores]
    if own is None or own.value is None or metric.higher_is_better is None:
        return None
    return min((metric.loss(own.value, v) for v in blind if v is not None), default=None)


def _mean(cells: Sequence[Cell]) -> Cell:
    """Return the mean of cells that all have a value, half-widths averaged."""
    return Cell(
        mean_if_whole(cell.value for cell in cells),
        mean_if_whole(cell.half_width for cell in cells),
        min(cell.samples for cell in cells),
        min(cell.images for cell in cells),
    )
