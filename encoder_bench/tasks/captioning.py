"""Captioning: one sentence an image against several human ones."""

from __future__ import annotations

from collections.abc import Sequence

from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import METRICS as _METRICS
from encoder_bench.metrics.metric import find_metric, runner_metrics
from encoder_bench.tasks.measures import Measured, PredictionSets, measure_all

METRICS = tuple(runner_metrics("captioning"))
CORPUS_METRICS = tuple(name for name in METRICS if _METRICS[name].needs_corpus)


def measure(
    samples: Sequence[Sample],
    predictions: Sequence[str],
    metrics: Sequence[str],
    corpus: Sequence[Sample] | None = None,
) -> Measured:
    """Return the named caption metrics; an empty caption counts as unparsed."""
    parsed = [text.strip() or None for text in predictions]
    return Measured(measure_all(samples, predictions, metrics, corpus), parsed)


def prepare(tasks: Sequence[PredictionSets]) -> None:
    """Score the captions of all tasks by each Java program in one go: one start for a whole run."""
    for name in METRICS:
        if _METRICS[name].backend != "java":
            continue
        pairs = [
            (text, sample.references)
            for task in tasks
            if name in task.metrics and all(sample.references for sample in task.samples)
            for texts in task.predictions
            for text, sample in zip(texts, task.samples, strict=True)
        ]
        if pairs:
            find_metric(name).measure([text for text, _ in pairs], [truths for _, truths in pairs])
