"""The vision tower of an open_clip model as an encoder: its patch tokens.

What belongs here: from pixels to patch tokens. Reading checkpoints is `open_clip.py`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from encoder_bench.base.errors import WeightsError
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.shape import token_shape
from encoder_bench.encoders.spec import EncoderSpec


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
        if any(not -self._blocks <= index < self._blocks for index in layer):
            raise WeightsError(
                f"encoder {spec.name}: --layer {', '.join(map(str, layer))}: this tower has "
                f"{self._blocks} blocks"
            )
        width, self.grid = token_shape(backbone, self._first_map, resolution)
        self.width = width * len(layer)
        self.spec = replace(
            spec,
            width=width,
            depth=self._blocks,
            resolution=resolution[0],
            patch=resolution[0] // self.grid[0],
            tokens=self.num_tokens,
            prefix_tokens=_prefix_tokens(backbone),
            parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, N, D)` patch tokens; layer -1 with the tower's final norm.

        One pass, which ends with the last block that is asked for.
        """
        wanted = [index % self._blocks for index in self.layer]
        tokens = self._outputs(pixels, sorted(set(wanted)), "NLC")
        last = self._blocks - 1
        if last in tokens:
            tokens[last] = _final_norm(self.backbone)(tokens[last])
        if len(wanted) == 1:
            return tokens[wanted[0]]
        return torch.cat([tokens[index] for index in wanted], dim=-1)

    def _outputs(self, pixels: Tensor, indices: list[int], layout: str) -> dict[int, Tensor]:
        """Return the un-normed patch tokens of some blocks, `NLC` or as maps, `NCHW`."""
        output = self.backbone.forward_intermediates(
            pixels, indices=indices, stop_early=True, intermediates_only=True, output_fmt=layout
        )
        return dict(zip(indices, output["image_intermediates"], strict=True))

    def _first_map(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the first block's patch tokens and their grid: all blocks have the same."""
        (features,) = self._outputs(pixels, [0], "NCHW").values()
        return features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])

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
    """Leave out projection, attention pooling and a norm of pooled vectors.

    No patch token depends on them. CLIPA's and CoCa's towers norm what was pooled, not the tokens.
    """
    if isinstance(getattr(backbone, "proj", None), nn.Parameter):
        backbone.proj = None
    pooler = getattr(backbone, "attn_pool", None)
    if getattr(backbone, "final_ln_after_pool", False) or pooler is not None:
        backbone.ln_post = nn.Identity().eval()
        backbone.attn_pool = backbone.attn_pool_contrastive = None
    trunk = getattr(backbone, "trunk", None)
    if trunk is not None:
        backbone.head = nn.Identity().eval()
        if getattr(trunk, "attn_pool", None) is not None:
            trunk.attn_pool = None
            trunk.global_pool = ""
        for name in ("fc_norm", "head"):
            if isinstance(getattr(trunk, name, None), nn.Module):
                setattr(trunk, name, nn.Identity().eval())


def _final_norm(backbone: Any) -> Any:
    """Return the norm of the last block's tokens, a tower's own or its timm trunk's."""
    trunk = getattr(backbone, "trunk", None)
    return backbone.ln_post if trunk is None else trunk.norm


def _prefix_tokens(backbone: Any) -> int:
    trunk = getattr(backbone, "trunk", None)
    return 1 if trunk is None else int(getattr(trunk, "num_prefix_tokens", 0) or 0)
