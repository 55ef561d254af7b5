"""Object counting (OC): a number against the true one."""

from __future__ import annotations

from collections.abc import Sequence

from encoder_bench.data.sample import Sample
from encoder_bench.metrics.counting import parse_count
from encoder_bench.metrics.metric import runner_metrics
from encoder_bench.tasks.measures import Measured, measure_all

METRICS = tuple(runner_metrics("counting"))


def measure(
    samples: Sequence[Sample], predictions: Sequence[str], metrics: Sequence[str]
) -> Measured:
    """Return the named metrics."""
    guesses = [parse_count(text) for text in predictions]
    parsed = [None if guess is None else str(guess) for guess in guesses]
    measures = measure_all(samples, predictions, metrics)
    return Measured(measures, parsed, ("answer", "crowding"), every_metric=True)
