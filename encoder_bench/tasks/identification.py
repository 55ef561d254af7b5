"""Multi-class identification (MCI) and POPE: yes or no against the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from encoder_bench.base.errors import DataError
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.yesno import parse_yes_no, yes_no_correct_gvt
from encoder_bench.tasks.measures import Measure, Measured, accuracy

METRICS = (
    *("yesno_accuracy", "yesno_precision", "yesno_recall", "yesno_f1", "yes_rate"),
    "yesno_accuracy_gvt",
)


def measure(
    samples: Sequence[Sample], predictions: Sequence[str], metrics: Sequence[str]
) -> Measured:
    """Return the named metrics; "yes" is the positive class.

    An answer that is neither yes nor no is not correct, and counts as unparsed.

    Raises:
        DataError: a reference is neither yes nor no; names the sample.
    """
    truths = np.array([_truth(sample) for sample in samples])
    guesses = [parse_yes_no(text) for text in predictions]
    said_yes = np.array([guess is True for guess in guesses])
    hits = said_yes & truths
    ones = np.ones(len(truths))
    ratios = {
        "yesno_precision": (hits, said_yes),
        "yesno_recall": (hits, truths),
        "yesno_f1": (2.0 * hits, said_yes + 1.0 * truths),
        "yes_rate": (said_yes, ones),
    }
    measures: dict[str, Measure] = {}
    for name in metrics:
        if name in ratios:
            above, below = ratios[name]
            measures[name] = Measure(np.stack([above, below], axis=1).astype(np.float64))
        elif name == "yesno_accuracy_gvt":
            pairs = zip(predictions, samples, strict=True)
            measures[name] = accuracy([yes_no_correct_gvt(t, s.references[0]) for t, s in pairs])
        else:
            measures[name] = accuracy([g == t for g, t in zip(guesses, truths, strict=True)])
    words = {True: "yes", False: "no", None: None}
    parsed = [words[guess] for guess in guesses]
    return Measured(measures, parsed, ("answer", "crowding", "setting"), every_metric=True)


def _truth(sample: Sample) -> bool:
    answer = parse_yes_no(sample.references[0])
    if answer is None:
        raise DataError(
            f"sample {sample.sample_id}: its answer {sample.references[0]!r} is neither yes nor no"
        )
    return answer
