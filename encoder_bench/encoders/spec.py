"""What the catalogue knows of an encoder before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["timm", "open_clip", "hf", "dir", "bundled", "combined"]
Supervision = Literal["fully", "weakly", "self", "none", "mixed"]


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """One encoder: its short name, which weights that is, and what is known of them.

    Attributes:
        name: the registered name, or the general form (`timm:NAME`) as the user gave it.
        display_name: for tables (`DINOv2 ViT-L/14`).
        family: `dinov2`, `clip`...
        source: which loader reads it.
        locator: Hub repository, timm name, `ARCH/PRETRAINED`, or folder.
        supervision: of the pretraining.
        pretraining_data: the data set's name; `unknown` where it is not stated.
        pretraining_images: how many, as the authors print it (`142M`).
        revision: Hub commit; None is shown as `unpinned`, and the run records what it got.
        parameters: of the vision tower without heads; None until it is loaded.
        width: D; None until it is loaded.
        depth: transformer blocks.
        patch: pixels of a patch's side.
        resolution: pixels of the side that the checkpoint's own preprocessing gives.
        licence: of the weights.
        paper: arXiv number.
    """

    name: str
    display_name: str
    family: str
    source: Source
    locator: str
    supervision: Supervision
    pretraining_data: str
    pretraining_images: str
    revision: str | None = None
    parameters: int | None = None
    width: int | None = None
    depth: int | None = None
    patch: int | None = None
    resolution: int | None = None
    licence: str = "unknown"
    paper: str = "unknown"
