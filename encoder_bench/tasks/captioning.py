"""Captioning: one sentence an image against several human ones."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from encoder_bench.base.errors import MissingDependencyError
from encoder_bench.data.sample import Sample
from encoder_bench.metrics import caption, ptb
from encoder_bench.metrics.statistics import Matrix
from encoder_bench.tasks.measures import Measure, Measured, PredictionSets, accuracy, unavailable

_BLEU = {f"bleu{order}": order for order in range(1, caption.BLEU_ORDER + 1)}
_Pair = tuple[str, tuple[str, ...]]
_JAVA = ("meteor", "spice")
CORPUS_METRICS = ("cider@full-idf",)
METRICS = ("cider", *CORPUS_METRICS, *_BLEU, "rouge_l", *_JAVA)
VERSIONS = {name: ptb.VERSION for name in METRICS if name != "spice"}


def measure(
    samples: Sequence[Sample],
    predictions: Sequence[str],
    metrics: Sequence[str],
    corpus: Sequence[Sample] | None = None,
) -> Measured:
    """Return the named caption metrics; an empty caption counts as unparsed.

    Args:
        samples: images with their human captions.
        predictions: a caption an image.
        metrics: names of `METRICS`.
        corpus: every sample of the split, for metrics of `CORPUS_METRICS`.
    """
    parsed = [text.strip() or None for text in predictions]
    if not all(sample.references for sample in samples):
        reason = "the captions of some images are not public or missing"
        return Measured({name: unavailable(reason) for name in metrics}, parsed)
    references = [sample.references for sample in samples]
    every = [sample.references for sample in (corpus or samples)]
    measures: dict[str, Measure] = {}
    sums: Matrix | None = None
    for name in metrics:
        if name in _BLEU:
            sums = caption.bleu_sums(predictions, references) if sums is None else sums
            measures[name] = Measure(sums, _BleuOfOrder(_BLEU[name]))
        else:
            measures[name] = _measure(name, predictions, references, every)
    return Measured(measures, parsed)


def _measure(
    name: str, predictions: Sequence[str], references: caption.Captions, corpus: caption.Captions
) -> Measure:
    if name in _JAVA:
        try:
            pairs = zip(predictions, map(tuple, references), strict=True)
            return _by_java(name, list(pairs))
        except MissingDependencyError as error:
            return unavailable(str(error))
    if name == "cider@full-idf":
        values = caption.cider_full_idf(predictions, references, corpus)
    else:
        score = caption.cider if name == "cider" else caption.rouge_l
        values = score(predictions, references)
    return accuracy((np.asarray(values) / 100).tolist())


def prepare(tasks: Sequence[PredictionSets]) -> None:
    """Score the captions of all tasks by each Java program in one go: one start for a whole run.

    What cannot run is left out, and images without human captions are; `measure` then says why.
    """
    for name in _JAVA:
        pairs = [
            (text, sample.references)
            for task in tasks
            if name in task.metrics and all(sample.references for sample in task.samples)
            for texts in task.predictions
            for text, sample in zip(texts, task.samples, strict=True)
        ]
        if pairs:
            with contextlib.suppress(MissingDependencyError):
                _rows_by_java(name, pairs)


_KNOWN: dict[tuple[str, _Pair], Matrix] = {}
"""What a Java program said of a caption and its references, which no other caption changes."""


def _rows_by_java(name: str, pairs: Sequence[_Pair]) -> Matrix:
    """Return a row a pair, asking the program only for those that it has not scored before."""
    from encoder_bench.metrics.meteor import meteor_counts
    from encoder_bench.metrics.spice import spice

    new = [pair for pair in dict.fromkeys(pairs) if (name, pair) not in _KNOWN]
    if new:
        texts, references = [text for text, _ in new], [truths for _, truths in new]
        rows = (meteor_counts if name == "meteor" else spice)(texts, references)
        _KNOWN.update(zip(((name, pair) for pair in new), rows, strict=True))
    return np.array([_KNOWN[name, pair] for pair in pairs])


def _by_java(name: str, pairs: Sequence[_Pair]) -> Measure:
    from encoder_bench.metrics.meteor import meteor

    rows = _rows_by_java(name, pairs)
    return Measure(rows, meteor) if name == "meteor" else accuracy((rows / 100).tolist())


class _BleuOfOrder:
    """The statistic of one BLEU order, as a function of column sums."""

    def __init__(self, order: int) -> None:
        self._order = order

    def __call__(self, sums: Matrix) -> Matrix:
        return caption.bleu(sums, self._order)
