"""Scores of frozen features that need no trained LLM, and what they are worth as a forecast."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Reporter
from encoder_bench.base.record import MODES, RunRecord
from encoder_bench.data.images import load_image
from encoder_bench.encoders.encoder import Encoder, encode_images
from encoder_bench.encoders.registry import find_spec
from encoder_bench.inspection.alignment import (
    alignment,
    correspondence,
    effective_rank,
    gromov_wasserstein,
)
from encoder_bench.inspection.labelled_images import Material
from encoder_bench.inspection.probe import probe_features
from encoder_bench.metrics.statistics import Matrix, spearman_interval
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.results.score import higher_is_better
from encoder_bench.results.table import Table, build_tables
from encoder_bench.training.feature_cache import open_features

_MIN_ENCODERS = 4

PREDICTORS = {
    "k-NN": True,
    "linear probe": True,
    "A-score": True,
    "C-score": True,
    "GW distance": False,
    "effective rank": True,
}
"""Scores of frozen features, and whether more is better."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """One encoder's scores on so many test images, by predictor name; or why one is missing."""

    encoder: str
    display_name: str
    pretrained: bool
    scores: dict[str, float]
    reasons: dict[str, str] = field(default_factory=dict)
    images: int = 0


class Tokens(NamedTuple):
    """An encoder's `(N, D)` patch tokens by image, N being the grid's height times width."""

    grid: tuple[int, int]
    by_path: Mapping[Path, Tensor]

    def means(self, paths: Sequence[Path]) -> Matrix:
        """Return `(P, D)` mean patch tokens."""
        return np.stack([self.by_path[path].double().mean(0).numpy() for path in paths])

    def pooled(self, paths: Sequence[Path], grid: tuple[int, int]) -> Tensor:
        """Return `(P, N, D)` patch tokens averaged to a coarser grid."""
        stacked = torch.stack([self.by_path[path].float() for path in paths])
        maps = stacked.transpose(1, 2).reshape(len(paths), -1, *self.grid)
        return F.adaptive_avg_pool2d(maps, grid).flatten(2).transpose(1, 2)


def forecast_all(
    names: Sequence[str],
    load: Callable[[str], Encoder],
    material: Material,
    *,
    texts: Matrix | None,
    reference: str | None,
    device: torch.device,
    reporter: Reporter,
) -> list[Forecast]:
    """Return every encoder's scores; one encoder is in memory at a time.

    `load` returns an encoder in eval mode; `texts` are `(P, T)`, the LLM's features of the captions
    of `material.described`. A-scores compare with `reference`, by default the first encoder that
    was pretrained with text (weak supervision).
    """
    if reference is None:
        weakly = (name for name in names if find_spec(name).supervision == "weakly")
        reference = next(weakly, None)
    paths = [*material.train, *material.test]
    kept = None if reference is None else patch_tokens(load(reference), paths, device, reporter)
    found = []
    for name in names:
        encoder = load(name)
        known = kept if name == reference else None
        tokens = known or patch_tokens(encoder, paths, device, reporter)
        found.append(_forecast(encoder, material, tokens, texts, kept))
    return found


def _forecast(
    encoder: Encoder,
    material: Material,
    tokens: Tokens,
    texts: Matrix | None,
    reference: Tokens | None,
) -> Forecast:
    reasons: dict[str, str] = {}
    train, test = material.train, material.test
    known, asked = tokens.means(train), tokens.means(test)
    probe = probe_features(material.labelled, known, asked)
    scores: dict[str, float] = {
        "k-NN": probe["knn"]["percent"],
        "linear probe": probe["linear_probe"]["percent"],
        "effective rank": effective_rank(np.concatenate([known, asked])),
    }
    if reference is None:
        reasons["A-score"] = "no reference encoder (--reference)"
    else:
        (height, width), (other_height, other_width) = tokens.grid, reference.grid
        grid = min(height, other_height), min(width, other_width)
        sides = (side.pooled(half, grid) for half in (train, test) for side in (tokens, reference))
        scores["A-score"] = alignment(*sides)
    if texts is None:
        reasons["GW distance"] = "the data has no captions of labelled test images"
    else:
        scores["GW distance"] = gromov_wasserstein(tokens.means(material.described), texts)
    boxed = [path for path in test if path in material.boxes]
    try:
        covered = torch.stack([_coverage(encoder, path, material) for path in boxed])
        found = correspondence(torch.stack([tokens.by_path[path] for path in boxed]), covered)
        scores["C-score"] = 100.0 * found.share
    except (ValueError, RuntimeError):  # nothing to stack, or no pair
        reasons["C-score"] = "no two test images with boxes share a category"
    about = encoder.spec.name, encoder.spec.display_name, encoder.pretrained
    return Forecast(*about, scores, reasons, len(test))


def _coverage(encoder: Encoder, path: Path, material: Material) -> Tensor:
    """Return `(C, N)`, the share of each patch that a category's boxes cover, 0 to 1.

    A drawing of the boxes goes through the encoder's own preprocessing, whatever that crops.
    """
    size = load_image(path).size
    grid = encoder.grid
    white, black = (encoder.transform(Image.new("RGB", size, name)) for name in ("white", "black"))
    numbers = sorted({category for boxes in material.boxes.values() for category in boxes})
    covered = torch.zeros(len(numbers), grid[0] * grid[1])
    for category, boxes in material.boxes[path].items():
        drawing = Image.new("RGB", size, "black")
        for box in boxes:
            ImageDraw.Draw(drawing).rectangle(box, fill="white")
        shown = (encoder.transform(drawing) - black) / (white - black)
        share = F.adaptive_avg_pool2d(shown.mean(0)[None], grid).flatten()
        covered[numbers.index(category)] = share
    return covered


@torch.inference_mode()
def text_features(language: LanguageModel, texts: Sequence[str]) -> Matrix:
    """Return `(P, T)` the mean of the last hidden states of each text's tokens."""
    found = []
    for text in texts:
        ids = torch.tensor([language.encode(text)], device=language.device)
        hidden = language.model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        found.append(hidden[0].cpu().double().mean(0).numpy())
    return np.stack(found)


def patch_tokens(
    encoder: Encoder, paths: Sequence[Path], device: torch.device, reporter: Reporter
) -> Tokens:
    """Return an encoder's patch tokens, from the feature cache where it has them."""
    store = open_features(encoder.requires_grad_(False), paths, device=device, reporter=reporter)
    found: dict[Path, Tensor] = {}
    with (
        contextlib.closing(store),
        reporter.phase(f"{encoder.spec.name} features", len(paths), "images") as phase,
    ):
        for path in paths:
            if path in store:
                found[path] = store[path]
            else:  # the disk is full
                found[path] = next(encode_images(encoder, [load_image(path)]))[0]
            phase.advance()
    return Tokens(encoder.grid, found)


@dataclass(frozen=True, slots=True)
class Worth:
    """How well a predictor's order is the order of a trained score, over encoders.

    Attributes:
        encoders: how many have both.
        correlation: Spearman's rank correlation, positive where the predictor is right.
        low: of the 95% interval.
        without_one: the smallest and the largest correlation when one encoder is left out.
    """

    predictor: str
    column: str
    encoders: int
    correlation: float
    low: float
    high: float
    without_one: tuple[float, float]

    @property
    def established(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def worth(
    forecasts: Sequence[Forecast], records: Sequence[RunRecord], *, joint: bool
) -> tuple[list[Worth], str]:
    """Return what predictors are worth on trained results, and the heading of their table.

    The table is the one with the most of the forecast encoders in that mode, the newest of those.

    Raises:
        DataError: no table has four of them.
    """
    names = {each.encoder for each in forecasts}
    trained = [_trained(table, names, joint=joint) for table in build_tables(records)]
    heading, scores = max(trained, key=lambda table: len(table[1]), default=("", {}))
    if len(scores) < _MIN_ENCODERS:
        raise DataError(
            f"{len(scores)} of these encoders have trained {MODES[joint]} results in one table; "
            f"a rank correlation needs {_MIN_ENCODERS}: run or name more (--results, sweep)"
        )
    found = []
    for predictor, more_is_better in PREDICTORS.items():
        for column in next(iter(scores.values())):
            opposed = more_is_better == (higher_is_better(records, column) is False)
            pairs = [
                (each.scores[predictor] * (-1.0 if opposed else 1.0), value)
                for each in forecasts
                if predictor in each.scores and each.encoder in scores
                if (value := scores[each.encoder][column]) is not None
            ]
            if len(pairs) >= _MIN_ENCODERS:
                found.append(_worth(predictor, column, np.asarray(pairs)))
    return found, heading


def _trained(
    table: Table, names: set[str], *, joint: bool
) -> tuple[str, dict[str, dict[str, float | None]]]:
    """Return a table's heading, and the named encoders' scores by column in one mode."""
    scores = {
        row.runs.records[0].encoder.name: {c: row.cells[c].value for c in table.columns}
        for row in table.rows
        if row.runs is not None and row.joint == joint
    }
    return table.heading, {name: found for name, found in scores.items() if name in names}


def _worth(predictor: str, column: str, pairs: Matrix) -> Worth:
    """Return the worth of `(n, 2)` predictions, more is better, and trained scores."""
    value, count = spearman(*pairs.T), len(pairs)
    others = [spearman(*np.delete(pairs, index, axis=0).T) for index in range(count)]
    interval = spearman_interval(value, count)
    return Worth(predictor, column, count, value, *interval, (min(others), max(others)))


def spearman(one: Any, other: Any) -> float:
    """Return Spearman's rank correlation; 0 where one of them is constant.

    >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])
    0.8
    """
    from scipy.stats import spearmanr

    if len(set(one)) < 2 or len(set(other)) < 2:
        return 0.0
    return round(float(spearmanr(one, other).statistic), 12)
