"""Which projector a name stands for.

What belongs here: one line a projector. Modules are imported when one is built, so that listing
names needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.base.recipes import ProjectorSettings

if TYPE_CHECKING:
    from encoder_bench.mllm.projectors.projector import Projector

_PROJECTORS = {
    "average-pool": "average_pool:AveragePool",
    "c-abstractor": "c_abstractor:CAbstractor",
    "linear": "linear:LinearProjector",
    "mlp": "mlp:MLPProjector",
    "pixel-shuffle": "pixel_shuffle:PixelShuffle",
    "pixel-shuffle-mlp": "pixel_shuffle_mlp:PixelShuffleMLP",
    "qformer": "qformer:QFormer",
    "resampler": "resampler:Resampler",
}


def projector_names() -> list[str]:
    """Return the registered names, sorted."""
    return sorted(_PROJECTORS)


def build_projector(
    settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
) -> Projector:
    """Return a freshly initialised projector; torch's generator decides its weights.

    Args:
        settings: the recipe's `[projector]`.
        grid: (h, w) patches of the encoder.
        width: D, the encoder's width.
        llm_width: D_llm, the language model's width.

    Raises:
        UnknownNameError: no such projector.
        RecipeError: settings that this projector cannot have on this grid.
    """
    if settings.name not in _PROJECTORS:
        raise UnknownNameError("projector", settings.name, projector_names())
    module, _, name = _PROJECTORS[settings.name].partition(":")
    build = getattr(import_module(f"encoder_bench.mllm.projectors.{module}"), name)
    projector: Projector = build(settings, grid=grid, width=width, llm_width=llm_width)
    if not settings.whiten:
        return projector
    from encoder_bench.mllm.projectors.whitening import WhitenedProjector

    return WhitenedProjector(projector)
