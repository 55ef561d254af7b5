"""A timm backbone as an encoder: patch tokens of a plain stack, or the last stage of a hierarchy.

What belongs here: from pixels to patch tokens. Reading checkpoints is `timm.py`'s. timm's own data
configuration gives resize, crop, mean and std.
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


class TimmEncoder(Encoder):
    """A timm backbone without its head; hierarchical ones give their last stage as tokens."""

    def __init__(
        self,
        spec: EncoderSpec,
        backbone: Any,
        *,
        layer: tuple[int, ...],
        resolution: int | None,
        revision: str | None,
    ) -> None:
        """Wrap a backbone; its heads, which no patch token depends on, are dropped.

        Raises:
            WeightsError: layers are asked for of a model that is no plain stack of blocks, or a
                layer that it does not have.
        """
        import timm

        super().__init__()
        config = timm.data.resolve_model_data_config(backbone)
        _drop_heads(backbone)
        self.backbone = backbone
        self.layer = layer
        self.pretrained = True
        self.weights_revision = revision
        if resolution:
            config["input_size"] = (3, resolution, resolution)
        self._data_config = config
        self._transform = timm.data.create_transform(**config, is_training=False)
        self.resolution = (int(config["input_size"][1]), int(config["input_size"][2]))
        self._blocks = _plain_blocks(backbone)
        self._check_layers(spec)
        self.width, self.grid = token_shape(backbone, self._tokens, self.resolution)
        self.spec = replace(
            spec,
            width=self.width // len(layer),
            depth=self._blocks,
            resolution=self.resolution[0],
            patch=self.resolution[0] // self.grid[0],
            tokens=self.num_tokens,
            prefix_tokens=int(getattr(backbone, "num_prefix_tokens", 0) or 0),
            parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        )

    def _check_layers(self, spec: EncoderSpec) -> None:
        if self.layer == (-1,):
            return
        if self._blocks is None:
            raise WeightsError(f"encoder {spec.name}: --layer works on plain stacks of blocks only")
        for index in self.layer:
            if not -self._blocks <= index < self._blocks:
                raise WeightsError(
                    f"encoder {spec.name}: --layer {index} is none of its {self._blocks} blocks"
                )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, N, D)` patch tokens; see `Encoder.forward`.

        The last layer is `forward_features`, with the final norm; earlier layers are the blocks'
        own outputs.
        """
        return self._tokens(pixels)[0]

    def _tokens(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        last = -1 if self._blocks is None else self._blocks - 1
        if all(index in (-1, last) for index in self.layer):
            tokens, grid = _flat(self.backbone.forward_features(pixels), self.backbone)
            return torch.cat([tokens] * len(self.layer), dim=-1), grid
        assert self._blocks is not None
        wanted = [index % self._blocks for index in self.layer]
        inner = sorted({index for index in wanted if index != last})
        final, maps = self.backbone.forward_intermediates(
            pixels, indices=inner, output_fmt="NCHW", stop_early=last not in wanted
        )
        by_layer = {
            index: (part.flatten(2).transpose(1, 2), (part.shape[2], part.shape[3]))
            for index, part in zip(inner, maps, strict=True)
        }
        if last in wanted:
            by_layer[last] = _flat(final, self.backbone)
        return torch.cat([by_layer[index][0] for index in wanted], dim=-1), by_layer[wanted[0]][1]

    def transform(self, image: Image) -> Tensor:
        """Return `(3, H, W)` pixels as timm's data configuration makes them."""
        pixels: Tensor = self._transform(image)
        return pixels.float()

    @property
    def transform_description(self) -> str:
        """The data configuration that timm resolved."""
        return ", ".join(f"{key}={value}" for key, value in sorted(self._data_config.items()))


def _drop_heads(backbone: Any) -> None:
    """Leave out classifier, attention pooling and the norm of the pooled vector.

    They see pooled tokens only: they would count as parameters and never receive a gradient.
    """
    if getattr(backbone, "attn_pool", None) is not None:
        backbone.attn_pool = None
        backbone.global_pool = ""
    for name in ("fc_norm", "head", "head_dist", "fc", "classifier"):
        if isinstance(getattr(backbone, name, None), nn.Module):
            setattr(backbone, name, nn.Identity().eval())


def _plain_blocks(backbone: Any) -> int | None:
    """Return how many blocks a plain stack has; None for hierarchical models."""
    blocks = getattr(backbone, "blocks", None)
    if blocks is None or not hasattr(backbone, "forward_intermediates"):
        return None
    if any(isinstance(block, nn.Sequential | nn.ModuleList) for block in blocks):
        return None
    return len(blocks)


def _flat(features: Tensor, backbone: Any) -> tuple[Tensor, tuple[int, int]]:
    """Return row-major `(B, N, D)` tokens and their grid from what `forward_features` gives.

    ViTs give `(B, P + N, D)` with P prefix tokens; others a map, `(B, D, h, w)` or `(B, h, w, D)`.
    """
    if features.ndim == 3:
        tokens = features[:, int(getattr(backbone, "num_prefix_tokens", 0)) :]
        embedding = getattr(backbone, "patch_embed", None)
        grid = getattr(embedding, "grid_size", None)
        count = tokens.shape[1]
        if grid is None or grid[0] * grid[1] != count:
            side = round(count**0.5)
            grid = (side, side)
        if grid[0] * grid[1] != count:
            raise WeightsError(f"{count} tokens do not lie on a square grid; use another encoder")
        return tokens, (int(grid[0]), int(grid[1]))
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        features = features.permute(0, 3, 1, 2)
    return features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])
