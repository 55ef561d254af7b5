"""Two runs on every metric of a task, those that only a whole set of answers has among them.

What belongs here: BLEU, F1, mean errors and the like, which are no means over samples: both runs'
answers are measured again and their column sums resampled together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord
from encoder_bench.metrics.metric import Measure
from encoder_bench.results.paired import PairedDifference, paired_measures
from encoder_bench.tasks.predictions import Prediction
from encoder_bench.tasks.rescore import measure_again


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One metric of one task, B less A, over the samples that both runs answered.

    `difference` is None where the metric cannot be computed here; `reason` says why.
    """

    metric: str
    score_a: float | None
    score_b: float | None
    difference: PairedDifference | None
    reason: str | None = None


def compare_metrics(
    task: str,
    run_a: RunRecord,
    run_b: RunRecord,
    predictions_a: Sequence[Prediction],
    predictions_b: Sequence[Prediction],
) -> tuple[MetricComparison, ...]:
    """Return the comparison of every metric that both runs list, A's primary one first.

    Both runs' answers are measured by today's code, so that an old record and a new one are read
    alike.
    """
    primary = run_a.tasks[task].primary
    both = [name for name in run_a.tasks[task].metrics if name in run_b.tasks[task].metrics]
    names = sorted(both, key=lambda name: name != primary)
    by_id = {each.sample_id: each for each in predictions_b}
    a = [each for each in predictions_a if each.sample_id in by_id]
    if not a:
        return ()
    try:
        measures_a = measure_again(run_a, task, a).measures
        measures_b = measure_again(run_b, task, [by_id[each.sample_id] for each in a]).measures
    except RecordError as error:
        return tuple(MetricComparison(name, None, None, None, str(error)) for name in names)
    images = [str(each.image_id) for each in a]
    return tuple(
        _compared(name, measures_a.get(name), measures_b.get(name), images) for name in names
    )


def _compared(
    name: str, a: Measure | None, b: Measure | None, images: Sequence[str]
) -> MetricComparison:
    if a is None or b is None:
        return MetricComparison(name, None, None, None, "it needs the whole split")
    score_a, score_b = a.score, b.score
    if score_a is None or score_b is None:
        reason = a.reason or b.reason or "not defined on these answers"
        return MetricComparison(name, score_a, score_b, None, reason)
    left, right = np.asarray(a.values, float), np.asarray(b.values, float)
    return MetricComparison(
        name, score_a, score_b, paired_measures(left, right, images, a.statistic)
    )
