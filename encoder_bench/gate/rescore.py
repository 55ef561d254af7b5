"""The recorded answers of accepted runs, scored again: no metric may read them otherwise.

What belongs here: a gate on the metrics that needs no model, and that no processor's rounding can
touch, since it is text that is scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord
from encoder_bench.gate.verdicts import RunVerdict, TaskVerdict
from encoder_bench.metrics.metric import Measure
from encoder_bench.results.compare import Flip, TaskComparison
from encoder_bench.tasks.predictions import Prediction, read_predictions
from encoder_bench.tasks.rescore import measure_again, prepare_recorded

TOLERANCE = 1e-6
"""Points; sums of thousands of float64 differ by less on any machine."""


def check_recorded_answers(baseline: Path, records: Mapping[str, RunRecord]) -> list[RunVerdict]:
    """Score every recorded answer of the accepted runs again and return what reads otherwise.

    Each sample's score under each metric, what the answer was parsed as, and the whole score must
    be as they were recorded.

    Args:
        baseline: the baseline's folder.
        records: its runs by identity.

    Raises:
        RecordError: predictions are missing or damaged.
    """
    prepare_recorded(baseline, records.values())
    return [
        RunVerdict(
            name,
            record.run_id,
            None,
            (),
            tuple(_verdict(baseline, record, task) for task in record.tasks),
        )
        for name, record in records.items()
    ]


def _verdict(baseline: Path, record: RunRecord, task: str) -> TaskVerdict:
    label = f"{task}, recorded answers scored again"
    predictions = read_predictions(baseline, record, task)
    try:
        measured = measure_again(record, task, predictions)
    except RecordError as error:
        return TaskVerdict(label, None, (str(error),))
    measures, parsed = measured.measures, measured.parsed
    failures = list(_changed_metrics(record, task, predictions, measures))
    otherwise = [each for each, now in zip(predictions, parsed, strict=True) if each.parsed != now]
    if otherwise:
        failures.append(
            f"{len(otherwise)} of {len(predictions)} answers are parsed otherwise, the first "
            f"{otherwise[0].sample_id}: {otherwise[0].prediction!r}"
        )
    comparison = _as_comparison(record, task, predictions, measures)
    return TaskVerdict(label, comparison, tuple(failures))


def _changed_metrics(
    record: RunRecord,
    task: str,
    predictions: Sequence[Prediction],
    measures: Mapping[str, Measure],
) -> Iterator[str]:
    """Yield a line for each metric that says something else than was recorded."""
    for metric, recorded in record.tasks[task].metrics.items():
        measure = measures.get(metric)
        if recorded.value is None:
            continue
        if measure is None:
            if record.limit is None:  # with a limit, it may be one that needs the whole split
                yield f"{metric} was {recorded.value:.2f} and is gone"
            continue
        now = measure.score
        if now is None:
            reason = measure.reason or "not defined on these answers"
            yield f"{metric} was {recorded.value:.2f} and is n/a now: {reason}"
            continue
        changed = [
            each
            for each, score in zip(predictions, measure.sample_scores(), strict=True)
            if metric in each.scores and _differ(each.scores[metric], score)
        ]
        if changed or _differ(recorded.value, now):
            example = f", the first {changed[0].sample_id}" if changed else ""
            yield (
                f"{metric} reads {len(changed)} of {len(predictions)} recorded answers otherwise"
                f"{example}: {recorded.value:.2f} was recorded, {now:.2f} now"
            )


def _as_comparison(
    record: RunRecord,
    task: str,
    predictions: Sequence[Prediction],
    measures: Mapping[str, Measure],
) -> TaskComparison | None:
    """Return the samples whose primary score changed, in the shape of two runs compared."""
    scores = record.tasks[task]
    measure, recorded = measures.get(scores.primary), scores.metrics[scores.primary].value
    now = None if measure is None else measure.score
    if measure is None or recorded is None or now is None:
        return None
    flips = []
    for each, after in zip(predictions, measure.sample_scores(), strict=True):
        before = each.scores.get(scores.primary)
        if before is not None and after is not None and _differ(before, after):
            flips.append(_flip(each, before, after))
    return TaskComparison(
        task=task,
        column=scores.column,
        metric=scores.primary,
        samples=len(predictions),
        only_a=0,
        only_b=0,
        score_a=recorded,
        score_b=now,
        difference=None,
        right=None,
        flips=tuple(flips),
        reason=f"{scores.column} {recorded:.2f} as recorded, {now:.2f} scored again",
    )


def _flip(prediction: Prediction, before: float, after: float) -> Flip:
    return Flip(
        sample_id=prediction.sample_id,
        image_id=prediction.image_id,
        question=prediction.question,
        references=prediction.references,
        prediction_a=prediction.prediction,
        prediction_b=prediction.prediction,
        score_a=before,
        score_b=after,
    )


def _differ(before: float | None, after: float | None) -> bool:
    if before is None or after is None:
        return before is not after
    return abs(before - after) > TOLERANCE
