"""Captioning: one sentence an image against several human ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from encoder_bench.data.sample import Sample
from encoder_bench.metrics import caption
from encoder_bench.statistics import Matrix
from encoder_bench.tasks.measures import Measure, Measured, accuracy, unavailable

_BLEU = {f"bleu{order}": order for order in range(1, caption.BLEU_ORDER + 1)}
_NEEDS_JAVA = {
    "meteor": "METEOR runs a Java program, which this version does not start",
    "spice": "SPICE needs the Stanford CoreNLP 3.6.0 jars (a 385 MB download), which are not here",
}
METRICS = ("cider", *_BLEU, "rouge_l", *_NEEDS_JAVA)


def measure(
    samples: Sequence[Sample], predictions: Sequence[str], metrics: Sequence[str]
) -> Measured:
    """Return the named caption metrics; an empty caption counts as unparsed."""
    references = [sample.references for sample in samples]
    measures = {name: _measure(name, predictions, references) for name in metrics}
    parsed = [text.strip() or None for text in predictions]
    return Measured(measures, parsed)


def _measure(name: str, predictions: Sequence[str], references: caption.Captions) -> Measure:
    if name in _NEEDS_JAVA:
        return unavailable(_NEEDS_JAVA[name])
    if name in _BLEU:
        return Measure(caption.bleu_sums(predictions, references), _BleuOfOrder(_BLEU[name]))
    score = caption.cider if name == "cider" else caption.rouge_l
    values = np.asarray(score(predictions, references)) / 100
    return accuracy(values.tolist())


class _BleuOfOrder:
    """The statistic of one BLEU order, as a function of column sums."""

    def __init__(self, order: int) -> None:
        self._order = order

    def __call__(self, sums: Matrix) -> Matrix:
        return caption.bleu(sums, self._order)
