"""Encoders in open_clip's layout: `ARCH/PRETRAINED` by tag, or with a checkpoint on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.reading import explained, require_reachable
from encoder_bench.encoders.spec import EncoderSpec
from encoder_bench.errors import UnknownNameError, WeightsError
from encoder_bench.hub import is_cached


class OpenClipEncoder(Encoder):
    """The vision tower of an open_clip model; its text tower is dropped."""

    def __init__(
        self,
        spec: EncoderSpec,
        backbone: Any,
        transform: Any,
        *,
        layer: tuple[int, ...],
        resolution: tuple[int, int],
    ) -> None:
        """Wrap a loaded vision tower with its evaluation transform.

        Raises:
            WeightsError: the tower gives no intermediate tokens, or has no such layer.
        """
        super().__init__()
        if not hasattr(backbone, "forward_intermediates"):
            raise WeightsError(
                f"encoder {spec.name}: this open_clip tower gives no patch tokens; its weights "
                "may be in timm (timm:NAME)"
            )
        self.backbone = backbone
        self.layer = layer
        self.pretrained = True
        self.weights_revision = None
        self.resolution = resolution
        self._transform = transform
        self._blocks = _block_count(spec.name, backbone)
        with torch.no_grad():
            probe = torch.zeros(1, 3, *resolution, dtype=next(backbone.parameters()).dtype)
            tokens, self.grid = self._tokens(probe)
        self.width = int(tokens.shape[-1])
        self.spec = replace(
            spec,
            width=self.width,
            depth=self._blocks,
            resolution=resolution[0],
            patch=resolution[0] // self.grid[0],
            parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, N, D)` patch tokens; layer -1 with the tower's final norm."""
        return self._tokens(pixels)[0]

    def _tokens(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        blocks = self._blocks
        if any(not -blocks <= index < blocks for index in self.layer):
            raise WeightsError(f"--layer {self.layer}: this tower has {blocks} blocks")
        wanted = [index % blocks for index in self.layer]
        maps = []
        for index in wanted:
            output = self.backbone.forward_intermediates(
                pixels,
                indices=[index],
                intermediates_only=True,
                normalize_intermediates=index == blocks - 1,
                output_fmt="NCHW",
            )
            maps.append(output["image_intermediates"][0])
        joined = torch.cat(maps, dim=1)
        return joined.flatten(2).transpose(1, 2), (joined.shape[2], joined.shape[3])

    def transform(self, image: Image) -> Tensor:
        """Return `(3, H, W)` pixels as open_clip's evaluation transform makes them."""
        pixels: Tensor = self._transform(image)
        return pixels.float()

    @property
    def transform_description(self) -> str:
        """The steps of the evaluation transform."""
        return " ".join(str(self._transform).split())


def _block_count(name: str, backbone: Any) -> int:
    """Return how many blocks a tower has, its own or its timm trunk's.

    Raises:
        WeightsError: they cannot be counted, and so the last one cannot be told.
    """
    if hasattr(backbone, "transformer"):
        return len(backbone.transformer.resblocks)
    blocks = getattr(getattr(backbone, "trunk", None), "blocks", None)
    if blocks is None:
        raise WeightsError(
            f"encoder {name}: the blocks of this open_clip tower cannot be counted; its weights "
            "may be in timm (timm:NAME)"
        )
    return len(blocks)


def load_open_clip(
    spec: EncoderSpec,
    weights: Path | None,
    *,
    layer: tuple[int, ...],
    resolution: int | None,
    dtype: torch.dtype,
) -> OpenClipEncoder:
    """Load the vision tower of an open_clip model.

    Args:
        spec: the catalogue's record; `locator` is `ARCH/PRETRAINED`.
        weights: a safetensors file of the whole model, instead of the download.
        layer: blocks whose tokens are returned.
        resolution: pixels of a side; open_clip interpolates the position embeddings.
        dtype: of the weights.

    Raises:
        UnknownNameError: open_clip has no such architecture or tag.
        WeightsError: unreachable, damaged, or no patch tokens.
    """
    import open_clip

    architecture, _, tag = spec.locator.partition("/")
    if architecture not in open_clip.list_models():
        raise UnknownNameError("open_clip architecture", architecture, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights is None and tag not in tags:
        raise UnknownNameError(f"open_clip tag of {architecture}", tag, tags)
    if weights is not None and weights.is_dir():
        weights = weights / "open_clip_model.safetensors"
    if weights is not None and (weights.suffix != ".safetensors" or not weights.is_file()):
        raise WeightsError(f"encoder {spec.name}: --weights {weights}: no such safetensors file")
    facts = open_clip.get_pretrained_cfg(architecture, tag) or {}
    repository = str(facts.get("hf_hub", "")).rstrip("/")
    if weights is None and repository and not is_cached(repository):
        require_reachable(spec.name, repository)
    with explained(spec.name, str(weights or spec.locator)):
        model, _, transform = open_clip.create_model_and_transforms(
            architecture,
            pretrained=str(weights) if weights is not None else tag,
            force_image_size=resolution,
            weights_only=True,
            force_quick_gelu=bool(facts.get("quick_gelu")),
        )
    size = model.visual.image_size
    pair = (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return OpenClipEncoder(
        spec, model.visual.to(dtype).eval(), transform, layer=layer, resolution=pair
    )
