"""Scores of frozen features that need no trained LLM."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import Reporter
from encoder_bench.data.folder import DataFolder
from encoder_bench.data.images import load_image
from encoder_bench.data.rows import Row, read_file
from encoder_bench.data.sample import Split
from encoder_bench.encoders.encoder import Encoder, encode_images
from encoder_bench.encoders.registry import find_spec
from encoder_bench.inspection.alignment import (
    Matrix,
    alignment,
    correspondence,
    effective_rank,
    gromov_wasserstein,
)
from encoder_bench.inspection.labelled_images import LabelledSet
from encoder_bench.inspection.probe import probe_features
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.training.feature_cache import open_features

_SPLITS: tuple[Split, ...] = ("test", "train")
_INSTANCES = ("instances_val2017.json", "instances_train2017.json")


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


@dataclass(frozen=True, slots=True)
class Material:
    """What the predictors read: labelled images, boxes on test images, and captions of them."""

    labelled: LabelledSet
    boxes: Mapping[Path, Mapping[int, Sequence[tuple[float, float, float, float]]]]
    captions: Mapping[Path, str]

    @property
    def train(self) -> list[Path]:
        """Training images."""
        return [Path(image.name) for image in self.labelled.train]

    @property
    def test(self) -> list[Path]:
        """Test images."""
        return [Path(image.name) for image in self.labelled.test]

    @property
    def described(self) -> list[Path]:
        """Test images that have a caption."""
        return [path for path in self.test if path in self.captions]


def read_material(folder: DataFolder, labelled: LabelledSet) -> Material:
    """Return what a data folder offers beside its labels; what it lacks is empty."""
    tested = {Path(image.name) for image in labelled.test}
    found: dict[Path, dict[int, list[tuple[float, float, float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for name in _INSTANCES:
        file = folder.files.find("coco", name)
        for path, category, box in _read_boxes(folder, file) if file else ():
            if path in tested:
                found[path][category].append(box)
    captions: dict[Path, str] = {}
    for split in _SPLITS:
        with contextlib.suppress(DataError):  # a folder without captions
            for sample in folder.samples(
                "captioning", reader="coco-captions", source="captions", split=split
            ):
                captions.setdefault(sample.image_path, sample.references[0])
    return Material(labelled, found, captions)


class _Boxed(Row):
    image_id: int
    category_id: int
    bbox: list[float]


class _Named(Row):
    id: int
    file_name: str = ""


def _read_boxes(
    folder: DataFolder, file: Path
) -> list[tuple[Path, int, tuple[float, float, float, float]]]:
    content = read_file(file)
    names = {row.id: row.file_name for _, row in content.rows(_Named, "images")}
    split = "train" if "train" in file.name else "val"
    rows = []
    for where, row in content.rows(_Boxed, "annotations"):
        if len(row.bbox) != 4:
            raise DataError(f"{where}: 'bbox' is not four numbers")
        name = names.get(row.image_id, "")
        path = folder.files.image(row.image_id, where, split=split, name=name)[1]
        x, y, width, height = row.bbox
        rows.append((path, row.category_id, (x, y, x + width, y + height)))
    return rows


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

    `load` returns an encoder in eval mode; `texts` are as `forecast` takes them. A-scores compare
    with `reference`, by default the first encoder that was pretrained with text (weak supervision).
    """
    if reference is None:
        weakly = (name for name in names if find_spec(name).supervision == "weakly")
        reference = next(weakly, None)
    paths = [*material.train, *material.test]
    kept = None
    if reference is not None:
        encoder = load(reference)
        kept = encoder.grid, patch_tokens(encoder, paths, device, reporter)
    found = []
    for name in names:
        encoder = load(name)
        tokens = (
            kept[1]
            if kept and name == reference
            else patch_tokens(encoder, paths, device, reporter)
        )
        found.append(forecast(encoder, material, tokens, texts=texts, reference=kept))
    return found


def forecast(
    encoder: Encoder,
    material: Material,
    tokens: Mapping[Path, Tensor],
    *,
    texts: Matrix | None,
    reference: tuple[tuple[int, int], Mapping[Path, Tensor]] | None,
) -> Forecast:
    """Return an encoder's scores, from `(N, D)` patch tokens of all labelled images by path.

    `texts` are `(P, T)`, the LLM's features of the captions of `material.described`; `reference` is
    grid and patch tokens of the encoder that A-scores compare with.
    """
    scores: dict[str, float] = {}
    reasons: dict[str, str] = {}
    train, test = material.train, material.test
    means = {path: tokens[path].double().mean(0).numpy() for path in [*train, *test]}
    probe = probe_features(
        material.labelled,
        np.stack([means[path] for path in train]),
        np.stack([means[path] for path in test]),
    )
    scores["k-NN"] = probe["knn"]["percent"]
    scores["linear probe"] = probe["linear_probe"]["percent"]
    scores["effective rank"] = effective_rank(np.stack([*means.values()]))
    if reference is None:
        reasons["A-score"] = "no reference encoder (--reference)"
    else:
        scores["A-score"] = _aligned(encoder.grid, tokens, reference, train, test)
    if texts is None:
        reasons["GW distance"] = "the data has no captions of labelled test images"
    else:
        images = np.stack([means[path] for path in material.described])
        scores["GW distance"] = gromov_wasserstein(images, texts)
    boxed = [path for path in test if path in material.boxes]
    try:
        covered = torch.stack([_coverage(encoder, path, material) for path in boxed])
        found = correspondence(torch.stack([tokens[p] for p in boxed]), covered)
        scores["C-score"] = 100.0 * found.share
    except (ValueError, RuntimeError):  # nothing to stack, or no pair
        reasons["C-score"] = "no two test images with boxes share a category"
    spec, tested = encoder.spec, len(material.test)
    return Forecast(spec.name, spec.display_name, encoder.pretrained, scores, reasons, tested)


def _aligned(
    grid: tuple[int, int],
    tokens: Mapping[Path, Tensor],
    reference: tuple[tuple[int, int], Mapping[Path, Tensor]],
    train: Sequence[Path],
    test: Sequence[Path],
) -> float:
    """Return the A-score on the coarser of both grids."""
    size = min(grid[0], reference[0][0]), min(grid[1], reference[0][1])

    def pooled(
        paths: Sequence[Path], grid: tuple[int, int], known: Mapping[Path, Tensor]
    ) -> Tensor:
        stacked = torch.stack([known[path].float() for path in paths])
        maps = stacked.transpose(1, 2).reshape(len(paths), -1, *grid)
        return F.adaptive_avg_pool2d(maps, size).flatten(2).transpose(1, 2)

    halves = [(paths, *pair) for paths in (train, test) for pair in ((grid, tokens), reference)]
    return alignment(*(pooled(paths, at, known) for paths, at, known in halves))


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
        found.append(hidden[0].double().mean(0).cpu().numpy())
    return np.stack(found)


def patch_tokens(
    encoder: Encoder, paths: Sequence[Path], device: torch.device, reporter: Reporter
) -> dict[Path, Tensor]:
    """Return `(N, D)` patch tokens by path, from the feature cache where it has them."""
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
    return found
