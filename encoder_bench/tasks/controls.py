"""Blind baselines: answers given without looking at the right image."""

import math
import random
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from encoder_bench.base.hashing import hash_text
from encoder_bench.data.sample import Sample
from encoder_bench.data.sample_table import SampleTable
from encoder_bench.metrics.metric import find_metric, measure_java_once

MEAN_IMAGE = Path("mean of the training features")
"""What a predictor is given in place of an image file."""
_FOLDS, _CANDIDATES = 5, 10


@dataclass(frozen=True, slots=True)
class Control:
    """What a blind baseline is.

    Attributes:
        meaning: one line for a footnote.
        asks_model: whether the trained model answers.
        counts: whether lift is measured against it.
    """

    label: str
    meaning: str
    asks_model: bool = False
    counts: bool = True


CONTROLS = {
    "no-image": Control(
        "no image", "the model without visual tokens, an input that training never showed", True
    ),
    "mean-image": Control(
        "mean image", "the model with the mean of the training images' features as the image", True
    ),
    "shuffled-images": Control("shuffled images", "the model with another test image", True),
    "constant": Control("constant answer", "the one answer that scores best on the test samples"),
    "question-majority": Control(
        "majority per question",
        "the commonest training answer to the question, or to any where the question is new; a "
        "task without training samples takes the test answers on other images",
    ),
    "majority": Control(
        "majority per question (knows the test answers)",
        "of older runs: the commonest test answer to the question; lift is not measured against it",
        counts=False,
    ),
}
"""Every blind baseline, in the order of the table's rows."""
ASKS_MODEL = tuple(name for name, control in CONTROLS.items() if control.asks_model)


def shuffled_images(samples: Sequence[Sample], seed: int) -> dict[int | str, Path]:
    """Return another image for each image id, drawn once for all of its questions.

    The images are put in a random circle and each takes the next one's place, so that none keeps
    its own. A single image stays.
    """
    paths = {sample.image_id: sample.image_path for sample in samples}
    ids = sorted(paths, key=str)
    random.Random(f"shuffled-images {seed}").shuffle(ids)
    return {own: paths[other] for own, other in zip(ids, [*ids[1:], ids[0]], strict=True)}


def majority_answers(samples: Sequence[Sample], training: Sequence[Sample] = ()) -> list[str]:
    """Return for each sample the commonest training answer to its question.

    A question that training never asks gets the commonest answer of all. Without training samples,
    the answers to a fifth of the images are fitted on those to the others.
    """
    if training:
        asked = {sample.question for sample in samples}
        return _majority(samples, SampleTable.of(training).pairs("question", "target"), asked)
    folds = [int(hash_text(str(sample.image_id)), 16) % _FOLDS for sample in samples]
    found: dict[str, str] = {}
    for fold in set(folds):
        here = [sample for sample, own in zip(samples, folds, strict=True) if own == fold]
        others = [
            (s.question, s.target) for s, own in zip(samples, folds, strict=True) if own != fold
        ]
        answers = _majority(here, others, {sample.question for sample in here})
        found |= {sample.sample_id: text for sample, text in zip(here, answers, strict=True)}
    return [found[sample.sample_id] for sample in samples]


def _majority(
    samples: Iterable[Sample], fitted: Iterable[tuple[str, str]], asked: Container[str]
) -> list[str]:
    """Return the commonest of the fitted answers to each sample's question; empty without any."""
    by_question: dict[str, Counter[str]] = {}
    everywhere: Counter[str] = Counter()
    for question, answer in fitted:
        everywhere[answer] += 1
        if question in asked:
            by_question.setdefault(question, Counter())[answer] += 1
    best = {question: counts.most_common(1)[0][0] for question, counts in by_question.items()}
    common = everywhere.most_common(1)
    return [best.get(sample.question, common[0][0] if common else "") for sample in samples]


def constant_answer(samples: Sequence[Sample], metric: str) -> list[str]:
    """Return the one answer, repeated, that scores best by a metric on all samples.

    The commonest targets are tried, and the empty answer with them.
    """
    primary = find_metric(metric)
    references = [sample.references for sample in samples]
    common = [text for text, _ in Counter(s.target for s in samples).most_common(_CANDIDATES)]
    tried = [*common, ""]
    measure_java_once(([metric], [text] * len(samples), references) for text in tried)
    best, best_value = "", -math.inf
    for text in tried:
        score = primary.measure([text] * len(samples), references).score
        value = -math.inf if score is None else -primary.loss(0.0, score)
        if value > best_value:
            best, best_value = text, value
    return [best] * len(samples)
