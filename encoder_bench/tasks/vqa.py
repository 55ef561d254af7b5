"""VQA: open questions against ten human answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from encoder_bench.data.sample import Sample
from encoder_bench.metrics import vqa
from encoder_bench.tasks.measures import Measure, Measured, accuracy, unavailable

_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "vqa_accuracy": vqa.vqa_accuracy,
    "vqa_accuracy_pre2021": vqa.vqa_accuracy_pre2021,
    "vqa_accuracy_normalised": vqa.vqa_accuracy_normalised,
    "vqa_accuracy_gvt": vqa.vqa_accuracy_gvt,
    "exact_match": vqa.exact_match,
}
METRICS = tuple(_METRICS)
VERSIONS = {"vqa_accuracy_pre2021": vqa.PRE2021_VERSION}
_NO_ANSWERS = "the answers are not public; upload the exported file to the benchmark's server"


def measure(
    samples: Sequence[Sample], predictions: Sequence[str], metrics: Sequence[str]
) -> Measured:
    """Return the named accuracies; an empty answer counts as unparsed.

    They are n/a where a sample has no human answer.
    """
    parsed = [vqa.normalise(text) if text.strip() else None for text in predictions]
    if not all(sample.references for sample in samples):
        return Measured({name: unavailable(_NO_ANSWERS) for name in metrics}, parsed)
    pairs = list(zip(predictions, samples, strict=True))
    measures: dict[str, Measure] = {
        name: accuracy([_METRICS[name](text, sample.references) / 100 for text, sample in pairs])
        for name in metrics
    }
    return Measured(measures, parsed, ("answer_type", "question_type"))


def export(samples: Sequence[Sample], predictions: Sequence[str]) -> list[dict[str, Any]]:
    """Return rows in the form that the VQA server takes, one a question."""
    return [
        {"question_id": int(sample.sample_id.rpartition("/")[2]), "answer": text.strip()}
        for sample, text in zip(samples, predictions, strict=True)
    ]
