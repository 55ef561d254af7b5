"""A row's score of each sample, averaged over its seeds: what paired tests between rows compare.

What belongs here: from predictions to numbers by sample. The tests are `paired.py`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from encoder_bench.results.columns import score_sources
from encoder_bench.results.grouping import TableRow
from encoder_bench.tasks.predictions import Prediction, read_controls


@dataclass(frozen=True, slots=True)
class SampleScores:
    """Scores in the metric's unit by sample id, and each sample's image."""

    scores: Mapping[str, float]
    images: Mapping[str, str]

    @property
    def mean(self) -> float:
        """Mean over samples; NaN without any."""
        return math.fsum(self.scores.values()) / len(self.scores) if self.scores else math.nan


def row_scores(results: Path, row: TableRow, column: str) -> dict[str | None, SampleScores]:
    """Return the sample scores of a row's own answers (under None) and of each blind control.

    Seeds are averaged sample by sample, over the samples that all seeds scored. Empty where a run
    of the row has no score in the column.

    Raises:
        RecordError: predictions are missing or damaged.
    """
    by_seed: list[dict[str | None, SampleScores]] = []
    for record in row.records:
        source = score_sources(record).get(column)
        if source is None:
            return {}
        task = next(name for name, scores in record.tasks.items() if scores is source.scores)
        controls = read_controls(results, record, task)
        by_seed.append({name: _scored(found, source.metric) for name, found in controls.items()})
    shared = [name for name in by_seed[0] if all(name in seed for seed in by_seed)]
    return {name: _averaged([seed[name] for seed in by_seed]) for name in shared}


def _scored(predictions: Iterable[Prediction], metric: str) -> SampleScores:
    scores, images = {}, {}
    for prediction in predictions:
        score = prediction.scores.get(metric)
        if score is not None and math.isfinite(score):
            scores[prediction.sample_id] = score
            images[prediction.sample_id] = str(prediction.image_id)
    return SampleScores(scores, images)


def _averaged(seeds: list[SampleScores]) -> SampleScores:
    shared = [sample for sample in seeds[0].scores if all(sample in s.scores for s in seeds)]
    means = {sample: math.fsum(s.scores[sample] for s in seeds) / len(seeds) for sample in shared}
    return SampleScores(means, {sample: seeds[0].images[sample] for sample in shared})
