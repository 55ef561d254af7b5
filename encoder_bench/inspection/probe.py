"""The cheap numbers that the field quotes of a frozen encoder: k-NN, linear probe, retrieval.

They read the mean patch token, since patch tokens are what an adapter reads; papers that quote a
class token's accuracy print other figures. Axes: P images, D width, C classes.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
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
from encoder_bench.inspection.labelled_images import LabelledSet
from encoder_bench.metrics.statistics import Matrix, share_interval

_NEIGHBOURS, _TEMPERATURE = 20, 0.07
_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_USUAL_STRENGTH = 0.1
_FIT_SHARE = 0.8
_RESAMPLES = 2_000
_SEED = 0


def probe_encoder(
    encoder: Encoder, data: LabelledSet, *, reporter: Reporter, batch: int = 32
) -> dict[str, Any]:
    """Return k-NN and linear-probe scores of an encoder's mean patch tokens.

    They are `measure` (`accuracy`, or `label-ranking average precision` where images may have
    several classes), `knn` and `linear_probe` (each `percent` and `interval`), `chance_percent`,
    and how many images and classes.

    Raises:
        DataError: fewer than two classes.
    """
    return probe_features(data, *_both_means(encoder, data, reporter, batch))


def probe_layers(
    encoder: Encoder, data: LabelledSet, *, reporter: Reporter, batch: int = 32
) -> dict[str, Any]:
    """Return k-NN and linear-probe scores of every block, from one pass over the images.

    The encoder gives all of its blocks' tokens, joined along channels. What `probe_encoder` returns
    of the last block comes with `layers`, the same of each block in order, and with `best`, what
    `lead_over_last` returns by task (`knn`, `linear_probe`).
    """
    blocks = len(encoder.layer)
    both = _both_means(encoder, data, reporter, batch)
    halves = [np.split(half, blocks, axis=1) for half in both]
    found = []
    with reporter.phase("probes", blocks, "blocks") as phase:
        for known, asked in zip(*halves, strict=True):
            found.append(_scores_by_image(data, known, asked))
            phase.advance()
    best = {
        task: lead_over_last(np.stack([each[task] for each in found]))
        for task in ("knn", "linear_probe")
    }
    layers = [_report(data, scores, len(halves[0][0])) for scores in found]
    return {**layers[-1], "layers": layers, "best": best}


def lead_over_last(scores: Matrix) -> dict[str, Any]:
    """Return the best block's `layer`, its `lead` over the last in points, and an `interval`.

    The interval has 95% for all blocks together, because the best one is chosen on the images that
    it is measured on: half its width is the 95th percentile, over bootstrap samples of the images,
    of the largest deviation of any block's lead. Scores are `(layers, images)`, 0 to 1.
    """
    leads = 100.0 * (scores - scores[-1])
    means, images = leads.mean(axis=1), leads.shape[1]
    draws = np.random.default_rng(_SEED).multinomial(images, [1 / images] * images, _RESAMPLES)
    width = float(np.quantile(np.abs(draws @ leads.T / images - means).max(axis=1), 0.95))
    lead = float(means.max())
    ends = [round(lead - width, 2), round(lead + width, 2)]
    return {"layer": int(means.argmax()), "lead": round(lead, 2), "interval": ends}


def _both_means(
    encoder: Encoder, data: LabelledSet, reporter: Reporter, batch: int
) -> tuple[Matrix, Matrix]:
    """Return `(P, D)` mean patch tokens of training and of test images."""
    means: list[Matrix] = []
    for half, images in (("train", data.train), ("test", data.test)):
        found = []
        with reporter.phase(f"{half} features", len(images), "images") as phase:
            for tokens in encode_images(encoder, (i.open() for i in images), batch_size=batch):
                found.append(tokens.mean(dim=1))
                phase.advance(len(tokens))
        means.append(torch.cat(found).double().numpy())
    return means[0], means[1]


def probe_features(data: LabelledSet, known: Matrix, asked: Matrix) -> dict[str, Any]:
    """Return what `probe_encoder` does, from `(P, D)` features of training and of test images."""
    return _report(data, _scores_by_image(data, known, asked), len(known))


def _scores_by_image(data: LabelledSet, known: Matrix, asked: Matrix) -> dict[str, Matrix]:
    """Return each test image's score, 0 to 1, by `knn`, by `linear_probe` and by `chance`."""
    from sklearn.preprocessing import MultiLabelBinarizer

    if len(data.class_names) < 2:
        raise DataError(f"{data.name}: {len(data.class_names)} class; a probe needs two")
    one_hot = MultiLabelBinarizer(classes=range(len(data.class_names)))
    labels, answers = (
        one_hot.fit_transform([image.classes for image in images]).astype(np.float64)
        for images in (data.train, data.test)
    )
    if not data.several and len({image.classes for image in data.train}) < 2:
        raise DataError(f"{data.name}: its training images are of one class; a probe needs two")
    measure = _ranking_precision if data.several else _accuracy
    linear = linear_probe_scores if data.several else _classifier_scores
    predicted = {
        "knn": nearest_neighbour_scores(known, labels, asked),
        "linear_probe": linear(known, labels, asked),
        "chance": np.broadcast_to(labels.mean(axis=0), answers.shape),
    }
    return {name: measure(values, answers) for name, values in predicted.items()}


def _report(data: LabelledSet, by_image: dict[str, Matrix], known: int) -> dict[str, Any]:
    scores = {name: _mean(each) for name, each in by_image.items()}
    return {
        "data": data.name,
        "measure": "label-ranking average precision" if data.several else "accuracy",
        "chance_percent": scores.pop("chance")["percent"],
        **scores,
        "classes": len(data.class_names),
        "train_images": known,
        "test_images": len(data.test),
    }


def nearest_neighbour_scores(known: Matrix, labels: Matrix, asked: Matrix) -> Matrix:
    """Return `(P, C)` scores: labels of the nearest by cosine, weighted by exp(similarity / 0.07).

    Reference: Caron et al. 2021 (DINO), the weighted k-NN of its evaluation; k = 20.
    """
    from sklearn.neighbors import KNeighborsRegressor

    model = KNeighborsRegressor(
        min(_NEIGHBOURS, len(known)),
        metric="cosine",
        weights=lambda distances: np.exp(-distances / _TEMPERATURE),
    )
    return np.asarray(model.fit(known, labels).predict(asked))


def linear_probe_scores(known: Matrix, labels: Matrix, asked: Matrix) -> Matrix:
    """Return `(P, C)` logits of one logistic regression per class, on standardised features."""
    from sklearn.multiclass import OneVsRestClassifier

    model = OneVsRestClassifier(_logistic())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class that all or no images have
        scores = model.fit(known, labels).decision_function(asked)
    return np.asarray(scores).reshape(len(asked), -1)


def _classifier_scores(known: Matrix, labels: Matrix, asked: Matrix) -> Matrix:
    """Return `(P, C)` 1 for the class that a logistic regression predicts.

    Its strength is chosen on a fifth of the training images, as CLIP's probes are (Radford et al.
    2021, appendix A.3), and fitted again on all of them.
    """
    from sklearn.model_selection import GridSearchCV

    order = np.random.default_rng(_SEED).permutation(len(known))
    fit, held_out = np.split(order, [max(1, int(_FIT_SHARE * len(order)))])
    classes, model = labels.argmax(axis=1), _logistic()
    if len(held_out) and len(set(classes[fit])) > 1:
        grid = {"logisticregression__C": _STRENGTHS}
        model = GridSearchCV(model, grid, cv=[(fit, held_out)])
    predicted = model.fit(known, classes).predict(asked)
    return np.asarray(np.eye(labels.shape[1])[predicted])


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=_USUAL_STRENGTH, max_iter=1000, random_state=_SEED)
    return make_pipeline(StandardScaler(), regression)


def _accuracy(scores: Matrix, labels: Matrix) -> Matrix:
    return np.asarray(scores.argmax(axis=1) == labels.argmax(axis=1), dtype=np.float64)


def _ranking_precision(scores: Matrix, labels: Matrix) -> Matrix:
    """Return label-ranking average precision: a mean over images, so that it has an interval.

    Images without a class are skipped.
    """
    from sklearn.metrics import label_ranking_average_precision_score as ranking

    kept = np.flatnonzero(labels.sum(axis=1))
    return np.asarray([ranking(labels[[i]], scores[[i]]) for i in kept])


def _mean(each: NDArray[Any], images: Sequence[int] | None = None) -> dict[str, Any]:
    """Return a share with its interval over images; by default each value is one's own."""
    values = np.stack([each.astype(np.float64), np.ones(len(each))], axis=1)
    interval = share_interval(values, range(len(values)) if images is None else images)
    return {
        "percent": round(100.0 * float(values[:, 0].mean()), 2),
        "interval": None if interval is None else [round(end, 2) for end in interval],
    }


def recall_at_one(images: Tensor, texts: Tensor, owner: Sequence[int]) -> dict[str, Any]:
    """Return image-to-text and text-to-image recall at one, in percent, with intervals.

    An image is right where its best text is one of its own; a text where its best image is its own
    (Karpathy and Fei-Fei 2015, section 4.1). Embeddings are `(P, E)` and `(T, E)`; `owner` is the
    image of each text.
    """
    similarity = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    of = torch.as_tensor(owner)
    right_images = of[similarity.argmax(dim=0)] == torch.arange(len(images))
    return {
        "image_to_text": _mean(right_images.numpy()),
        "text_to_image": _mean((similarity.argmax(dim=1) == of).numpy(), owner),
        "images": len(images),
        "texts": len(texts),
        "chance_percent": round(100.0 / len(images), 2),
    }


def retrieve(
    towers: DualEncoder, samples: Sequence[Sample], *, reporter: Reporter, batch: int = 32
) -> dict[str, Any]:
    """Return recall at one of captions and their images: one sample per image, all its captions."""

    def embedded(
        embed: Callable[[list[Any]], Tensor], items: Iterable[Any], total: int, unit: str
    ) -> Tensor:
        waiting, found = iter(items), []
        with reporter.phase(f"{unit[:-1]} embeddings", total, unit) as phase:
            while part := list(itertools.islice(waiting, batch)):
                found.append(embed(part))
                phase.advance(len(part))
        return torch.cat(found)

    texts = [text for sample in samples for text in sample.references]
    owner = [number for number, sample in enumerate(samples) for _ in sample.references]
    photos = (load_image(sample.image_path) for sample in samples)
    pictures = embedded(towers.embed_images, photos, len(samples), "images")
    return recall_at_one(pictures, embedded(towers.embed_texts, texts, len(texts), "texts"), owner)
