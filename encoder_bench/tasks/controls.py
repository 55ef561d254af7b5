"""Blind baselines: answers given without looking at the right image.

`no-image` and `shuffled-images` ask the model; `constant` and `majority` need none and know the
test answers, so that they bound from above what any blind guess can reach.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import find_metric, measure_java_once

ASKS_MODEL = ("no-image", "shuffled-images")


def shuffled_images(samples: Sequence[Sample], seed: int) -> dict[int | str, Path]:
    """Return another image for each image id, drawn once for all of its questions.

    The images are put in a random circle and each takes the next one's place, so that none keeps
    its own. A single image stays.
    """
    paths = {sample.image_id: sample.image_path for sample in samples}
    ids = sorted(paths, key=str)
    random.Random(f"shuffled-images {seed}").shuffle(ids)
    return {own: paths[other] for own, other in zip(ids, [*ids[1:], ids[0]], strict=True)}


def majority_answers(samples: Sequence[Sample]) -> list[str]:
    """Return for each sample the commonest target among samples with the same question."""
    by_question: dict[str, Counter[str]] = {}
    for sample in samples:
        by_question.setdefault(sample.question, Counter())[sample.target] += 1
    best = {question: counts.most_common(1)[0][0] for question, counts in by_question.items()}
    return [best[sample.question] for sample in samples]


def constant_answer(samples: Sequence[Sample], metric: str, *, candidates: int = 10) -> list[str]:
    """Return the one answer, repeated, that scores best by a metric on all samples.

    The commonest targets are tried, and the empty answer with them.
    """
    primary = find_metric(metric)
    references = [sample.references for sample in samples]
    common = [text for text, _ in Counter(s.target for s in samples).most_common(candidates)]
    tried = [*common, ""]
    measure_java_once(([metric], [text] * len(samples), references) for text in tried)
    best, best_value = "", -math.inf
    for text in tried:
        score = primary.measure([text] * len(samples), references).score
        value = -math.inf if score is None else -primary.loss(0.0, score)
        if value > best_value:
            best, best_value = text, value
    return [best] * len(samples)
