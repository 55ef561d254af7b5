"""Projectors: patch tokens `(B, N, D)` to visual tokens `(B, M, E)`; one row each, found by name.

Classes are imported when one is built, so that listing names needs no torch. Other packages add
theirs through the entry point group `encoder_bench.projectors`.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.base.plugins import plugin_entries
from encoder_bench.base.recipes import ProjectorSettings

if TYPE_CHECKING:
    from encoder_bench.mllm.projectors.projector import Projector

ENTRY_POINTS = "encoder_bench.projectors"
_PROJECTORS = {
    "average-pool": "linear:AveragePool",
    "c-abstractor": "linear:CAbstractor",
    "linear": "linear:LinearProjector",
    "linear-from-zero": "linear:LinearFromZero",
    "mlp": "linear:MLPProjector",
    "pixel-shuffle": "linear:PixelShuffle",
    "pixel-shuffle-mlp": "linear:PixelShuffleMLP",
    "qformer": "queries:QFormer",
    "resampler": "queries:Resampler",
}


def _entries() -> dict[str, EntryPoint]:
    entries = {
        name: EntryPoint(name, f"{__name__}.{value}", ENTRY_POINTS)
        for name, value in _PROJECTORS.items()
    }
    return entries | plugin_entries(ENTRY_POINTS, entries)


def projector_names() -> list[str]:
    """Return the registered names, sorted."""
    return sorted(_entries())


def build_projector(
    settings: ProjectorSettings, *, grid: tuple[int, int], width: int, llm_width: int
) -> Projector:
    """Return a freshly initialised projector; torch's generator decides its weights.

    `grid` is (h, w) of the encoder's patches, `width` its D, `llm_width` the LLM's E.

    Raises:
        UnknownNameError: no such projector.
        RecipeError: settings that this projector cannot have on this grid.
    """
    entries = _entries()
    if settings.name not in entries:
        raise UnknownNameError("projector", settings.name, sorted(entries))
    build = entries[settings.name].load()
    projector: Projector = build(settings, grid=grid, width=width, llm_width=llm_width)
    if not settings.whiten:
        return projector
    from encoder_bench.mllm.projectors.whitening import WhitenedProjector

    return WhitenedProjector(projector)
