"""Object counting (OC): a number against the true one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from encoder_bench.base.errors import DataError
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.counting import VERSION, parse_count, parse_count_gvt
from encoder_bench.metrics.statistics import plain_ratio
from encoder_bench.tasks.measures import Measure, Measured, accuracy

METRICS = ("counting_accuracy", "counting_error", "counting_accuracy_gvt", "counting_error_gvt")

VERSIONS = {"counting_accuracy": VERSION, "counting_error": VERSION}


def measure(
    samples: Sequence[Sample], predictions: Sequence[str], metrics: Sequence[str]
) -> Measured:
    """Return the named metrics.

    An answer without one clear number is not correct and is counted as unparsed; the mean
    absolute error is over parsed answers only, GVT's over all, an unparsable one being 0.

    Raises:
        DataError: a reference is no number; names the sample.
    """
    truths = [_truth(sample) for sample in samples]
    guesses = [parse_count(text) for text in predictions]
    pairs = list(zip(guesses, truths, strict=True))
    measures: dict[str, Measure] = {}
    for name in metrics:
        if name == "counting_error":
            rows = [(0.0, 0.0) if g is None else (float(abs(g - t)), 1.0) for g, t in pairs]
            measures[name] = Measure(np.asarray(rows), plain_ratio)
        elif name == "counting_accuracy_gvt":
            gvt = [parse_count_gvt(text) for text in predictions]
            measures[name] = accuracy([g == t for g, t in zip(gvt, truths, strict=True)])
        elif name == "counting_error_gvt":
            gvt = [parse_count_gvt(text) for text in predictions]
            apart = [(float(abs(g - t)), 1.0) for g, t in zip(gvt, truths, strict=True)]
            measures[name] = Measure(np.asarray(apart), plain_ratio)
        else:
            measures[name] = accuracy([guess == truth for guess, truth in pairs])
    parsed = [None if guess is None else str(guess) for guess in guesses]
    return Measured(measures, parsed, ("answer", "crowding"), every_metric=True)


def _truth(sample: Sample) -> int:
    number = parse_count(sample.references[0])
    if number is None:
        raise DataError(
            f"sample {sample.sample_id}: its answer {sample.references[0]!r} is no count"
        )
    return number
