"""The vision tower of an open_clip model as an encoder: its patch tokens.

What belongs here: from pixels to patch tokens. Reading checkpoints is `open_clip.py`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.shape import token_shape
from encoder_bench.encoders.spec import EncoderSpec
from encoder_bench.errors import WeightsError


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
        revision: str | None,
    ) -> None:
        """Wrap a vision tower with its evaluation transform; its projection is dropped.

        Raises:
            WeightsError: the tower gives no intermediate tokens, or has no such layer.
        """
        super().__init__()
        if not hasattr(backbone, "forward_intermediates"):
            raise WeightsError(
                f"encoder {spec.name}: this open_clip tower gives no patch tokens; its weights "
                "may be in timm (timm:NAME)"
            )
        _drop_heads(backbone)
        self.backbone = backbone
        self.layer = layer
        self.pretrained = True
        self.weights_revision = revision
        self.resolution = resolution
        self._transform = transform
        self._blocks = _block_count(spec.name, backbone)
        self.width, self.grid = token_shape(backbone, self._tokens, resolution)
        self.spec = replace(
            spec,
            width=self.width // len(layer),
            depth=self._blocks,
            resolution=resolution[0],
            patch=resolution[0] // self.grid[0],
            tokens=self.num_tokens,
            prefix_tokens=_prefix_tokens(backbone),
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
        maps: dict[int, Tensor] = {}
        for norm in (False, True):  # only the last block's tokens are normed
            indices = sorted({index for index in wanted if (index == blocks - 1) == norm})
            if indices:
                output = self.backbone.forward_intermediates(
                    pixels,
                    indices=indices,
                    intermediates_only=True,
                    normalize_intermediates=norm,
                    output_fmt="NCHW",
                )
                maps |= dict(zip(indices, output["image_intermediates"], strict=True))
        joined = torch.cat([maps[index] for index in wanted], dim=1)
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


def _drop_heads(backbone: Any) -> None:
    """Leave out projection and attention pooling: no patch token depends on them."""
    if isinstance(getattr(backbone, "proj", None), nn.Parameter):
        backbone.proj = None
    trunk = getattr(backbone, "trunk", None)
    if trunk is not None:
        backbone.head = nn.Identity().eval()
        if getattr(trunk, "attn_pool", None) is not None:
            trunk.attn_pool = None
            trunk.global_pool = ""
        for name in ("fc_norm", "head"):
            if isinstance(getattr(trunk, name, None), nn.Module):
                setattr(trunk, name, nn.Identity().eval())


def _prefix_tokens(backbone: Any) -> int:
    trunk = getattr(backbone, "trunk", None)
    return 1 if trunk is None else int(getattr(trunk, "num_prefix_tokens", 0) or 0)
