"""What the catalogue knows of an encoder before it is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Source = Literal["timm", "open_clip", "hf", "dir", "bundled", "combined"]
Supervision = Literal["fully", "weakly", "self", "mixed", "unknown", "none"]


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
        depth: transformer blocks; None for hierarchical models.
        patch: pixels of the side that one token covers (the overall stride of hierarchical models).
        resolution: pixels of the side that the checkpoint's own preprocessing gives.
        tokens: N patch tokens at that resolution.
        prefix_tokens: class, distillation and register tokens that stand before the patch tokens
            and are left out.
        gflops: 1e9 floating-point operations per image, a multiply-add counted as two.
        licence: of the weights.
        paper: arXiv number.
        sources: every place that offers these weights, `timm:NAME` and so on, the first loaded by
            the plain name.
        architecture: arguments that override timm's own for the name, where a checkpoint that
            timm does not list differs (`num_heads`).
        preprocessing: likewise, overrides of timm's record (`mean`, `std`, `crop_pct`).
        random_weights: the architecture and preprocessing with the library's own initialisation.
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
    tokens: int | None = None
    prefix_tokens: int | None = None
    gflops: float | None = None
    licence: str = "unknown"
    paper: str = "unknown"
    sources: tuple[str, ...] = ()
    architecture: Mapping[str, Any] = field(default_factory=dict, hash=False)
    preprocessing: Mapping[str, Any] = field(default_factory=dict, hash=False)
    random_weights: bool = False
