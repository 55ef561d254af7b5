"""A vision tower of transformers as an encoder: its patch tokens, and nothing else.

What belongs here: from pixels to patch tokens. Reading checkpoints is `transformers.py`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from encoder_bench.base.errors import WeightsError
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.hf_architectures import ARCHITECTURES, Architecture
from encoder_bench.encoders.hf_processor import described, output_size, resized
from encoder_bench.encoders.spec import EncoderSpec


class TransformersEncoder(Encoder):
    """A vision tower of transformers with its own image processor."""

    def __init__(
        self,
        spec: EncoderSpec,
        backbone: Any,
        processor: Any,
        *,
        layer: tuple[int, ...],
        resolution: int | None,
        pretrained: bool,
        revision: str | None,
        remote_code: bool = False,
        architecture: Architecture | None = None,
    ) -> None:
        """Wrap a loaded tower.

        Args:
            spec: the catalogue's record.
            backbone: transformers' module.
            processor: its image processor; its size is set where `resolution` is given.
            layer: blocks whose tokens are returned, joined along channels.
            resolution: pixels of a side; None for the checkpoint's own.
            pretrained: False for seeded random weights.
            revision: what was in fact loaded.
            remote_code: whether the repository's own Python code ran.
            architecture: how its tokens are laid out; by default what is known of its model type.

        Raises:
            WeightsError: a layer or a resolution that this tower does not have.
        """
        super().__init__()
        self.backbone = backbone
        architecture = architecture or ARCHITECTURES[backbone.config.model_type]
        self._architecture = architecture
        config = backbone.config
        self.processor = resized(processor, resolution) if resolution else processor
        self.resolution = output_size(self.processor)
        self.layer = layer
        self.pretrained = pretrained
        self.weights_revision = revision
        self.remote_code = remote_code
        registers = int(getattr(config, "num_register_tokens", 0) or 0)
        self._prefix_tokens = architecture.prefix_tokens + registers
        self._resized = config.image_size not in (self.resolution[0], list(self.resolution))
        if self._resized and architecture.other_sizes == "never":
            raise WeightsError(
                f"encoder {spec.name}: this architecture takes {config.image_size} pixels only, "
                f"not {self.resolution[0]}; leave --resolution out, or use its timm source"
            )
        if architecture.hierarchical:
            width, depth, patch = self._measure_last_stage(spec)
        else:
            width, depth, patch = self._check_blocks(spec)
        self.width = width * len(layer)
        self.spec = replace(
            spec,
            width=width,
            depth=depth,
            patch=patch,
            resolution=self.resolution[0],
            tokens=self.num_tokens,
            prefix_tokens=self._prefix_tokens,
            parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        )

    def _check_blocks(self, spec: EncoderSpec) -> tuple[int, int, int]:
        """Set the grid of a plain ViT; return width, depth and patch."""
        config = self.backbone.config
        patch, depth = int(config.patch_size), int(config.num_hidden_layers)
        # SigLIP's SO400M was trained at 384 px with a patch of 14: its own size may leave a rim.
        if self._resized and (self.resolution[0] % patch or self.resolution[1] % patch):
            raise WeightsError(
                f"encoder {spec.name}: {self.resolution[0]} pixels are not a multiple of its "
                f"patch of {patch}; choose another --resolution"
            )
        for index in self.layer:
            if not -depth <= index < depth:
                raise WeightsError(
                    f"encoder {spec.name}: --layer {index} is none of its {depth} blocks "
                    f"(0 to {depth - 1}, or -{depth} to -1)"
                )
        self.grid = (self.resolution[0] // patch, self.resolution[1] // patch)
        return int(config.hidden_size), depth, patch

    def _measure_last_stage(self, spec: EncoderSpec) -> tuple[int, None, int]:
        """Set the grid of a hierarchical model from a blank image; return width and stride."""
        if self.layer != (-1,):
            raise WeightsError(f"encoder {spec.name}: --layer works on plain stacks of blocks only")
        first = next(self.backbone.parameters())
        blank = torch.zeros(1, 3, *self.resolution, dtype=first.dtype, device=first.device)
        with torch.no_grad():
            features = self.backbone(pixel_values=blank).last_hidden_state
        if features.ndim == 4:
            self.grid = (features.shape[2], features.shape[3])
            return int(features.shape[1]), None, self.resolution[0] // self.grid[0]
        tokens = features.shape[1] - self._prefix_tokens
        stride = round((self.resolution[0] * self.resolution[1] / tokens) ** 0.5)
        self.grid = (self.resolution[0] // stride, self.resolution[1] // stride)
        return int(features.shape[2]), None, stride

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, N, D)` patch tokens; see `Encoder.forward`.

        The last layer is the library's `last_hidden_state` under the tower's final norm (CLIP's
        `last_hidden_state` comes before it, as in no other source of the same weights); an earlier
        layer is the block's output as it is, as LLaVA takes it.
        """
        arguments: dict[str, Any] = {"pixel_values": pixels.to(self.backbone.dtype)}
        if self._resized and self._architecture.other_sizes == "argument":
            arguments["interpolate_pos_encoding"] = True
        if self.backbone.config.model_type == "vit_mae":
            # Noise in rising order keeps every patch in its place; the mask ratio is 0.
            order = torch.arange(self.num_tokens, device=pixels.device, dtype=torch.float32)
            arguments["noise"] = order.expand(len(pixels), -1)
        if self._architecture.hierarchical:
            features: Tensor = self.backbone(**arguments).last_hidden_state
            if features.ndim == 4:
                return features.flatten(2).transpose(1, 2)
            return features[:, self._prefix_tokens :]
        last = self._last
        only_last = all(index in (-1, last) for index in self.layer)
        output = self.backbone(**arguments, output_hidden_states=not only_last)
        chosen = [
            self._normed(output.last_hidden_state)
            if index in (-1, last)
            else output.hidden_states[index + 1 if index >= 0 else index]
            for index in self.layer
        ]
        tokens = torch.cat(chosen, dim=-1) if len(chosen) > 1 else chosen[0]
        return tokens[:, self._prefix_tokens :]

    def _normed(self, tokens: Tensor) -> Tensor:
        name = self._architecture.final_norm
        if name is None:
            return tokens
        normed: Tensor = getattr(self.backbone, name)(tokens)
        return normed

    @property
    def _last(self) -> int:
        return int(self.backbone.config.num_hidden_layers) - 1

    def transform(self, image: Image) -> Tensor:
        """Return `(3, H, W)` pixels as the checkpoint's own processor makes them."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels.float()

    @property
    def transform_description(self) -> str:
        """The processor's settings."""
        return described(self.processor)
