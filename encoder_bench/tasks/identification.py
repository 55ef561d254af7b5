"""Multi-class identification (MCI) and POPE: yes or no against the truth."""

from __future__ import annotations

from collections.abc import Sequence

from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import runner_metrics
from encoder_bench.metrics.yesno import parse_yes_no
from encoder_bench.tasks.measures import Measured, measure_all

METRICS = tuple(runner_metrics("identification"))


def measure(
    samples: Sequence[Sample], predictions: Sequence[str], metrics: Sequence[str]
) -> Measured:
    """Return the named metrics; "yes" is the positive class."""
    words = {True: "yes", False: "no", None: None}
    parsed = [words[parse_yes_no(text)] for text in predictions]
    measures = measure_all(samples, predictions, metrics)
    return Measured(measures, parsed, ("answer", "crowding", "setting"), every_metric=True)
