"""The cheap numbers that the field quotes of a frozen encoder: k-NN, linear probe, retrieval.

What belongs here: features of labelled images, the two classifiers on them, and intervals. They
read the mean patch token, since patch tokens are what an adapter reads; papers that quote a class
token's accuracy print other figures.

Axes: P images, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Reporter
from encoder_bench.data.images import load_image
from encoder_bench.data.sample import Sample
from encoder_bench.encoders.encoder import Encoder, encode_images
from encoder_bench.encoders.text_tower import DualEncoder
from encoder_bench.inspection.labelled_images import LabelledImage, LabelledSet
from encoder_bench.inspection.measures import (
    linear_probe_scores,
    nearest_neighbour_scores,
)
from encoder_bench.metrics.statistics import bootstrap_interval, plain_ratio

_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_FIT_SHARE = 0.8


def probe_encoder(
    encoder: Encoder, data: LabelledSet, *, reporter: Reporter, batch: int = 32, seed: int = 0
) -> dict[str, Any]:
    """Return k-NN and linear-probe scores of an encoder's mean patch tokens.

    Args:
        encoder: on any device, in eval mode.
        data: labelled images.
        reporter: told the progress.
        batch: images at once.
        seed: of the resampling.

    Returns:
        `measure` (`accuracy`, or `label-ranking average precision` where images may have several
        classes),
        `knn` and `linear_probe` (each `percent` and `interval`), `chance_percent`, and how many
        images and classes.

    Raises:
        DataError: fewer than two classes.
    """
    if len(data.class_names) < 2:
        raise DataError(f"{data.name}: {len(data.class_names)} class; a probe needs two")
    train, train_labels = _features(encoder, data.train, data, "train", reporter, batch)
    test, test_labels = _features(encoder, data.test, data, "test", reporter, batch)
    nearest = nearest_neighbour_scores(train, train_labels, test)
    if data.several:
        linear = linear_probe_scores(train, train_labels, test)
        prior = train_labels.mean(dim=0).expand_as(test_labels)
        chance = float(_ranking_precision(prior, test_labels, seed)["percent"])
        scores = {
            name: _ranking_precision(values, test_labels, seed)
            for name, values in (("knn", nearest), ("linear_probe", linear))
        }
    else:
        answers = test_labels.argmax(dim=1)
        common = int(train_labels.sum(dim=0).argmax())
        chance = float((answers == common).float().mean() * 100)
        predicted = _logistic(train, train_labels.argmax(dim=1), test, seed)
        scores = {
            "knn": _accuracy(nearest.argmax(dim=1) == answers, seed),
            "linear_probe": _accuracy(predicted == answers, seed),
        }
    return {
        "data": data.name,
        "measure": "label-ranking average precision" if data.several else "accuracy",
        **scores,
        "chance_percent": round(chance, 2),
        "classes": len(data.class_names),
        "train_images": len(train),
        "test_images": len(test),
    }


@torch.no_grad()
def _features(
    encoder: Encoder,
    images: Sequence[LabelledImage],
    data: LabelledSet,
    half: str,
    reporter: Reporter,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """Return `(P, D)` mean patch tokens and `(P, C)` labels, 0 or 1."""
    means = []
    labels = torch.zeros(len(images), len(data.class_names))
    with reporter.phase(f"{half} features", len(images), "images") as phase:
        opened = (image.open() for image in images)
        for tokens in encode_images(encoder, opened, batch_size=batch):
            means.append(tokens.mean(dim=1))
            phase.advance(len(tokens))
    for number, image in enumerate(images):
        labels[number, list(image.classes)] = 1.0
    return torch.cat(means), labels


def _logistic(train: Tensor, labels: Tensor, test: Tensor, seed: int) -> Tensor:
    """Return `(P,)` classes by logistic regression on standardised features.

    Its strength is chosen on a fifth of the training images, as CLIP's probes are (Radford et al.
    2021, appendix A.3), and fitted again on all of them.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    order = np.random.default_rng(seed).permutation(len(train))
    cut = max(1, int(_FIT_SHARE * len(order)))
    fit, held_out = order[:cut], order[cut:]
    known, answers = train.numpy(), labels.numpy()

    def model(strength: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))

    best = _STRENGTHS[1]
    if len(held_out) and len(set(answers[fit])) > 1:
        accuracies = [
            model(c).fit(known[fit], answers[fit]).score(known[held_out], answers[held_out])
            for c in _STRENGTHS
        ]
        best = _STRENGTHS[int(np.argmax(accuracies))]
    predicted: NDArray[np.int64] = model(best).fit(known, answers).predict(test.numpy())
    return torch.from_numpy(np.asarray(predicted))


def _accuracy(correct: Tensor, seed: int) -> dict[str, Any]:
    return _mean(correct.numpy().astype(np.float64), seed)


def _mean(each: NDArray[np.float64], seed: int) -> dict[str, Any]:
    values = np.stack([each, np.ones(len(each))], axis=1)
    interval = bootstrap_interval(values, range(len(values)), plain_ratio, seed=seed)
    return {
        "percent": round(100.0 * float(values[:, 0].mean()), 2),
        "interval": None if interval is None else [round(100.0 * end, 2) for end in interval],
    }


def _ranking_precision(scores: Tensor, labels: Tensor, seed: int) -> dict[str, Any]:
    """Return label-ranking average precision: a mean over images, so that it has an interval.

    Images without a class are passed over.
    """
    from sklearn.metrics import label_ranking_average_precision_score as ranking

    kept = labels.sum(dim=1) > 0
    rows = zip(labels[kept].numpy(), scores[kept].numpy(), strict=True)
    precision = [float(ranking(truth[None], row[None])) for truth, row in rows]
    return _mean(np.asarray(precision), seed)


def recall_at_one(images: Tensor, texts: Tensor, owner: Sequence[int]) -> dict[str, Any]:
    """Return image-to-text and text-to-image recall at one, in percent, with intervals.

    A picture is right where its best text is one of its own; a text where its best picture is its
    own (Karpathy and Fei-Fei 2015, section 4.1).

    Args:
        images: `(P, E)` embeddings.
        texts: `(T, E)` embeddings.
        owner: T indices: the picture of each text.
    """
    similarity = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    of = torch.as_tensor(owner)
    right_texts = similarity.argmax(dim=1) == of
    right_images = of[similarity.argmax(dim=0)] == torch.arange(len(images))
    return {
        "image_to_text": _accuracy(right_images, 0),
        "text_to_image": _accuracy(right_texts, 0),
        "images": len(images),
        "texts": len(texts),
        "chance_percent": round(100.0 / len(images), 2),
    }


def retrieve(
    towers: DualEncoder, samples: Sequence[Sample], *, reporter: Reporter, batch: int = 32
) -> dict[str, Any]:
    """Return recall at one of captions and their pictures.

    Args:
        towers: both towers of one checkpoint.
        samples: captioning samples, one a picture, their captions as references.
        reporter: told the progress.
        batch: images or texts at once.
    """
    texts = [text for sample in samples for text in sample.references]
    owner = [number for number, sample in enumerate(samples) for _ in sample.references]
    pictures, sentences = [], []
    with reporter.phase("image embeddings", len(samples), "images") as phase:
        for start in range(0, len(samples), batch):
            part = [load_image(s.image_path) for s in samples[start : start + batch]]
            pictures.append(towers.embed_images(part))
            phase.advance(len(part))
    with reporter.phase("text embeddings", len(texts), "texts") as phase:
        for start in range(0, len(texts), batch):
            sentences.append(towers.embed_texts(texts[start : start + batch]))
            phase.advance(len(texts[start : start + batch]))
    return recall_at_one(torch.cat(pictures), torch.cat(sentences), owner)
