"""The picture of patch features: a row a photo, and two columns an encoder.

What belongs here: drawing with matplotlib. The numbers are `patch_features.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from encoder_bench.base.files import atomic_path
from encoder_bench.inspection.patch_features import PatchFeatures

_SIDE = 2.1
"""Inches of one cell's side."""


def draw_features(
    images: Sequence[Image.Image], views: Sequence[PatchFeatures], output: Path, *, dpi: int = 130
) -> None:
    """Write the picture: photo, then components and similarity of each encoder.

    Args:
        images: as they were given.
        views: one an encoder, over the same images.
        output: `.png`, `.svg` or `.pdf`.
        dpi: of a PNG.

    Raises:
        EncoderBenchError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 + 2 * len(views)
    figure = Figure(
        figsize=(_SIDE * columns + 0.5, (_SIDE + 0.1) * len(images) + 0.9), layout="constrained"
    )
    FigureCanvasAgg(figure)
    cells = figure.subplots(len(images), columns, squeeze=False)
    for row, image in enumerate(images):
        _show(cells[row][0], image, "photo" if row == 0 else "")
        for number, view in enumerate(views):
            left, right = cells[row][1 + 2 * number], cells[row][2 + 2 * number]
            _show(left, view.colours[row].numpy(), _title(view) if row == 0 else "")
            _draw_likeness(right, view, row)
    figure.supxlabel(
        "Colours: first three principal components of the patch tokens, one set for all photos.  "
        "Grey: cosine to the patch in the red square.",
        fontsize=8,
    )
    with atomic_path(output) as temporary:
        figure.savefig(temporary, dpi=dpi, format=output.suffix.lstrip(".") or "png")


def _title(view: PatchFeatures) -> str:
    marked = "" if view.pretrained else "\nrandom weights"
    height, width = view.colours.shape[1:3]
    return f"{view.display_name}{marked}\n{height}x{width}, {view.explained:.0%} of variance"


def _draw_likeness(axes: Any, view: PatchFeatures, row: int) -> None:
    from matplotlib.patches import Rectangle

    title = "cosine to one patch" if row == 0 else ""
    _show(axes, view.similarity[row].numpy(), title, cmap="gray", vmin=-1.0, vmax=1.0)
    down, across = view.chosen
    axes.add_patch(
        Rectangle((across - 0.5, down - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=1.5)
    )


def _show(axes: Any, content: Any, title: str, **options: Any) -> None:
    axes.imshow(content, interpolation="nearest", **options)
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
