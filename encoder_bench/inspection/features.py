"""What an encoder's patch tokens say about pictures, drawn: in a file, and for the report.

Axes: I images, h and w the patch grid, N = h * w, D width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.errors import EncoderBenchError, RecipeError
from encoder_bench.base.files import atomic_path
from encoder_bench.base.hardware import choose_device
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import EncoderSettings
from encoder_bench.base.record import RunRecord
from encoder_bench.data.images import load_image
from encoder_bench.encoders.encoder import Encoder, encode_images
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.pipeline.build import load_run
from encoder_bench.results.grouping import TableRow, group_records
from encoder_bench.results.thumbnails import Seen, SeenColumn, data_uri, picture_uri

_LOW, _HIGH = 0.01, 0.99
_DPI = 130
_INCHES = 2.1
"""Of one cell's side."""
PHOTOS = 4
"""In the report."""


class PatchFeatures(NamedTuple):
    """One encoder's view of some pictures; `title` is the encoder's display name.

    `colours` are `(I, h, w, 3)` 0..1, the first three principal components, and `explained` the
    share of the variance that they hold; `similarity` is `(I, h, w)` the cosine to the `chosen`
    (row, column) patch of the same picture, -1..1.
    """

    title: str
    pretrained: bool
    colours: Tensor
    similarity: Tensor
    chosen: tuple[int, int]
    explained: float


@torch.inference_mode()
def patch_features(
    encoder: Encoder, images: Sequence[Image.Image], *, point: tuple[float, float] = (0.5, 0.5)
) -> PatchFeatures:
    """Return an encoder's view of pictures, its components found over all of them together.

    Reference: Oquab et al. 2023 (DINOv2), figure 1: principal components of patch features shown
    as red, green and blue; one set of components for all pictures, so that a colour means the same
    in each. `point` (across, down), as shares of what the encoder is shown, says which patch the
    others are compared to.

    Raises:
        RecipeError: the point lies outside.
    """
    if not all(0.0 <= part <= 1.0 for part in point):
        raise RecipeError(f"--point {point[0]},{point[1]}: give shares from 0 to 1, as in 0.5,0.5")
    tokens = torch.cat(list(encode_images(encoder, images, batch_size=1)))
    height, width = encoder.grid
    row, column = min(height - 1, int(point[1] * height)), min(width - 1, int(point[0] * width))
    unit = F.normalize(tokens, dim=-1)
    similarity = (unit @ unit[:, row * width + column, :, None]).squeeze(-1)
    colours, explained = principal_colours(tokens)
    return PatchFeatures(
        title=encoder.spec.display_name,
        pretrained=encoder.pretrained,
        colours=colours.reshape(len(tokens), height, width, 3),
        similarity=similarity.reshape(len(tokens), height, width),
        chosen=(row, column),
        explained=explained,
    )


def principal_colours(tokens: Tensor) -> tuple[Tensor, float]:
    """Return `(I, N, 3)` colours in 0..1 from the three main components, and what they explain.

    Each component is stretched from its first to its ninety-ninth percentile. Where there are
    fewer than three, the colours left are 0. Tokens are `(I, N, D)`, D at least 3.
    """
    from sklearn.decomposition import PCA

    flat = tokens.reshape(-1, tokens.shape[-1])
    pca = PCA(min(3, len(flat)), svd_solver="full")
    scores = torch.from_numpy(pca.fit_transform(flat.double().numpy())).float()
    low, high = (torch.quantile(scores, level, dim=0) for level in (_LOW, _HIGH))
    colours = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
    colours = F.pad(colours, (0, 3 - colours.shape[1]))
    return colours.reshape(*tokens.shape[:2], 3), float(pca.explained_variance_ratio_.sum())


def draw_features(
    images: Sequence[Image.Image], views: Sequence[PatchFeatures], output: Path
) -> None:
    """Write a `.png`, `.svg` or `.pdf`: per photo a row with each encoder's colours and similarity.

    Raises:
        EncoderBenchError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = 1 + 2 * len(views)
    size = (_INCHES * columns + 0.5, (_INCHES + 0.1) * len(images) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    cells = figure.subplots(len(images), columns, squeeze=False)
    for row, image in enumerate(images):
        _show(cells[row][0], image, "photo" if row == 0 else "")
        for view, left, right in zip(views, cells[row][1::2], cells[row][2::2], strict=True):
            marked = "" if view.pretrained else "\nrandom weights"
            height, width = view.colours.shape[1:3]
            shown = f"{height}x{width}, {view.explained:.0%} of variance"
            title = f"{view.title}{marked}\n{shown}" if row == 0 else ""
            _show(left, view.colours[row].numpy(), title)
            grey = view.similarity[row].numpy()
            title = "cosine to one patch" if row == 0 else ""
            _show(right, grey, title, cmap="gray", vmin=-1.0, vmax=1.0)
            corner = (view.chosen[1] - 0.5, view.chosen[0] - 0.5)
            right.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=1.5))
    figure.supxlabel(
        "Colours: first three principal components of the patch tokens, one set for all photos.  "
        "Grey: cosine to the patch in the red square.",
        fontsize=8,
    )
    with atomic_path(output) as temporary:
        figure.savefig(temporary, dpi=_DPI, format=output.suffix.lstrip(".") or "png")


def _show(axes: Any, content: Any, title: str, **options: Any) -> None:
    axes.imshow(content, interpolation="nearest", **options)
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def seen_features(
    results: Path,
    records: Sequence[RunRecord],
    images: Mapping[str, Path],
    reporter: Reporter,
    *,
    device: str = "auto",
) -> dict[str, Seen]:
    """Return pictures of patch features by table heading.

    A frozen row shows the encoder as it was loaded; a joint one the tuned encoder, from the run's
    trained weights. An encoder that cannot be loaded here is named with the reason. Images
    are `str(image_id)` -> image file; the same few of them are shown every time.
    """
    photos = [images[name] for name in sorted(images, key=hash_text)[:PHOTOS]]
    shown = tuple(uri for path in photos if (uri := data_uri(path)) is not None)
    found = {}
    for group in group_records(records) if photos else ():
        columns, missing = [SeenColumn("photo", "", shown, patches=False)], []
        with reporter.phase("patch features", len(group.rows), "encoders") as phase:
            for row in group.rows:
                try:
                    columns.append(_column(results, row, photos, device))
                except EncoderBenchError as error:
                    missing.append(f"{row.name}: not shown, because {error}")
                phase.advance()
        found[group.heading] = Seen(tuple(columns), tuple(missing))
    return found


def _column(results: Path, row: TableRow, photos: Sequence[Path], device: str) -> SeenColumn:
    view = patch_features(_encoder(results, row, device), [load_image(path) for path in photos])
    note = f"{view.explained:.0%} of variance" + ("" if row.pretrained else ", random weights")
    pixels = (view.colours.numpy() * 255).round().astype("uint8")
    pictures = tuple(picture_uri(Image.fromarray(each), "png") for each in pixels)
    return SeenColumn(row.name, note, pictures, patches=True)


def _encoder(results: Path, row: TableRow, device: str) -> Encoder:
    """Return a row's encoder: tuned where it was tuned."""
    record = row.records[0]
    if row.joint:
        return load_run(results, record, device=device).encoder
    settings = EncoderSettings.model_validate(record.adapter["encoder"])
    chosen = settings.model_dump(include={"layer", "resolution", "dtype"})
    encoder = load_encoder(record.encoder.name, **chosen, seed=record.seed)
    if encoder.fingerprint() != record.encoder.fingerprint:
        raise EncoderBenchError(f"the weights found now are not those of run {record.run_id}")
    return encoder.to(choose_device(device)).eval()
