"""VQA: open questions against ten human answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from encoder_bench.data.sample import Sample
from encoder_bench.metrics import vqa
from encoder_bench.metrics.metric import runner_metrics
from encoder_bench.tasks.measures import Measured, measure_all

METRICS = tuple(runner_metrics("vqa"))


def measure(
    samples: Sequence[Sample], predictions: Sequence[str], metrics: Sequence[str]
) -> Measured:
    """Return the named accuracies; an empty answer counts as unparsed."""
    parsed = [vqa.normalise(text) if text.strip() else None for text in predictions]
    measures = measure_all(samples, predictions, metrics)
    return Measured(measures, parsed, ("answer_type", "question_type"))


def export(samples: Sequence[Sample], predictions: Sequence[str]) -> list[dict[str, Any]]:
    """Return rows in the form that the VQA server takes, one a question."""
    return [
        {"question_id": int(sample.sample_id.rpartition("/")[2]), "answer": text.strip()}
        for sample, text in zip(samples, predictions, strict=True)
    ]
