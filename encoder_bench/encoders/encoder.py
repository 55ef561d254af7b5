"""The contract that every visual encoder meets: an image's pixels in, its patch tokens out.

Axes: B images, H and W pixels, N patch tokens, h and w the patch grid (N = h * w), D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from encoder_bench.base.errors import WeightsError

if TYPE_CHECKING:
    from PIL.Image import Image

    from encoder_bench.encoders.spec import EncoderSpec


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How an encoder is loaded, whatever its library.

    Attributes:
        layer: blocks whose tokens are returned, joined along channels; -1 is the last.
        resolution: pixels of a side; None for the checkpoint's own.
        dtype: of the weights.
        random_weights: build with the library's own initialisation and read no weights.
        trust_remote_code: let a Hub repository run its own code.
    """

    layer: tuple[int, ...] = (-1,)
    resolution: int | None = None
    dtype: torch.dtype = torch.float32
    random_weights: bool = False
    trust_remote_code: bool = False


class Encoder(nn.Module, ABC):
    """A frozen or jointly tuned backbone with the preprocessing that its weights expect.

    Subclasses hold the library's own model in `self.backbone` and implement `forward` and
    `transform`. Nothing here freezes: `mllm/trainable.py` decides what trains.

    Attributes:
        spec: the catalogue's record (name, source, supervision, pretraining data...).
        backbone: the library's module; its state dict is what is hashed and saved.
        width: D, the size of a patch token.
        grid: (h, w) patches at `resolution`.
        resolution: (H, W) pixels that `transform` returns.
        layer: which blocks' outputs are returned, -1 the last; several are joined along channels.
        pretrained: False only for random weights, which every output then marks.
        weights_revision: the Hub commit or file hash that was in fact loaded; None if unknown.
        remote_code: whether a repository's own Python code ran, as `--trust-remote-code` allows.
        notes: where the checkpoint's own configuration was followed against its name.
    """

    spec: EncoderSpec
    backbone: Any
    width: int
    grid: tuple[int, int]
    resolution: tuple[int, int]
    layer: tuple[int, ...]
    pretrained: bool = True
    weights_revision: str | None = None
    remote_code: bool = False
    notes: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """N, the patch tokens of one image."""
        return self.grid[0] * self.grid[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; pixels are converted to it."""
        dtype: torch.dtype = next(self.backbone.parameters()).dtype
        return dtype

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Return patch tokens only, row-major on `grid`.

        Args:
            pixels: `(B, 3, H, W)` floats as `transform` makes them.

        Returns:
            `(B, N, D)`, without CLS, register or distillation tokens.
        """

    @abstractmethod
    def transform(self, image: Image) -> Tensor:
        """Return `(3, H, W)` float32 pixels, resized and normalised as the checkpoint declares."""

    @property
    @abstractmethod
    def transform_description(self) -> str:
        """One line on resize, crop, interpolation, mean and std; part of the fingerprint."""

    def pixels(self, images: Iterable[Image]) -> Tensor:
        """Return `(B, 3, H, W)` pixels of images, on the encoder's device."""
        device = next(self.backbone.parameters()).device
        return torch.stack([self.transform(image) for image in images]).to(device)

    def fingerprint(self) -> str:
        """Return the sha256 of weights, transform and layer: equal exactly when features are."""
        from encoder_bench.base.hashing import hash_parameters, hash_text

        return hash_text(
            hash_parameters(self.backbone), self.transform_description, repr(self.layer)
        )

    def _set_shape(
        self, spec: EncoderSpec, *, width: int, depth: int | None, patch: int, prefix_tokens: int
    ) -> None:
        """Set width and the facts of the spec, after `layer`, `resolution` and `grid`."""
        self.width = width * len(self.layer)
        self.spec = replace(
            spec,
            width=width,
            depth=depth,
            patch=patch,
            resolution=self.resolution[0],
            tokens=self.num_tokens,
            prefix_tokens=prefix_tokens,
            parameters=sum(parameter.numel() for parameter in self.backbone.parameters()),
        )


@torch.inference_mode()
def encode_images(
    encoder: Encoder, images: Iterable[Image], *, batch_size: int = 32
) -> Iterator[Tensor]:
    """Yield `(b, N, D)` float32 patch tokens on the CPU, at most `batch_size` images at a time.

    The encoder runs where it is; nothing is dropped out only if it is in eval mode.
    """
    waiting = iter(images)
    while batch := list(islice(waiting, batch_size)):
        yield encoder(encoder.pixels(batch)).float().cpu()


def check_layers(name: str, layer: tuple[int, ...], blocks: int | None) -> None:
    """Check that an encoder has the blocks that are asked for.

    `blocks` is how many it has; None for hierarchical models.

    Raises:
        WeightsError: no such block, or no plain stack of blocks.
    """
    if blocks is None:
        if layer != (-1,):
            raise WeightsError(f"encoder {name}: --layer works on plain stacks of blocks only")
        return
    for index in layer:
        if not -blocks <= index < blocks:
            raise WeightsError(
                f"encoder {name}: --layer {index} is none of its {blocks} blocks "
                f"(0 to {blocks - 1}, or -{blocks} to -1)"
            )
