"""The contract that every visual encoder meets: an image's pixels in, its patch tokens out.

Axes: B images, H and W pixels, N patch tokens, h and w the patch grid (N = h * w), D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.base.errors import WeightsError
from encoder_bench.base.hashing import hash_parameters, hash_text
from encoder_bench.encoders.catalog import EncoderSpec, check_layer

if TYPE_CHECKING:
    from PIL.Image import Image

TokensAndGrid = tuple[Tensor, tuple[int, int]]
"""`(B, N, D)`, row-major on its (h, w)."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How an encoder is loaded, whatever its library.

    Attributes:
        layer: blocks whose tokens are returned, joined along channels; -1 is the last.
        resolution: pixels of a side; None for the checkpoint's own.
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

    Subclasses hold the library's own model in `self.backbone` and implement `forward`. Nothing
    here freezes: `mllm/trainable.py` decides what trains.

    Attributes:
        spec: the catalogue's record.
        backbone: the library's module; its state dict is what is hashed and saved.
        width: D, the size of a patch token.
        grid: (h, w) patches at `resolution`.
        resolution: (H, W) pixels that `transform` returns.
        to_pixels: the library's own preprocessing of one image.
        layer: which blocks' outputs are returned, -1 the last; several are joined along channels.
        blocks: how many there are to choose from; None for hierarchical models.
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
    to_pixels: Callable[[Image], Tensor]
    layer: tuple[int, ...]
    blocks: int | None = None
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
        """Return patch tokens `(B, N, D)` of pixels `(B, 3, H, W)`, row-major on `grid`.

        Without CLS, register or distillation tokens.
        """

    def transform(self, image: Image) -> Tensor:
        """Return `(3, H, W)` float32 pixels, resized and normalised as the checkpoint declares."""
        return self.to_pixels(image).float()

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
        return hash_text(
            hash_parameters(self.backbone), self.transform_description, repr(self.layer)
        )

    def _set_layer(self, spec: EncoderSpec, layer: tuple[int, ...], blocks: int | None) -> None:
        """Choose among so many blocks; None for hierarchical models. Raises as `check_layer`."""
        check_layer(spec.name, layer, blocks)
        self.layer, self.blocks = layer, blocks

    @property
    def _last(self) -> int:
        """The last block's number, counted from 0; a hierarchical model is one block."""
        return (self.blocks or 1) - 1

    def _wanted(self) -> list[int]:
        """Return the numbers of the blocks in `layer`, counted from 0."""
        return [index % (self._last + 1) for index in self.layer]

    def _joined(self, outputs: Mapping[int, Tensor]) -> Tensor:
        """Return the wanted blocks' outputs, joined along channels."""
        parts = [outputs[index] for index in self._wanted()]
        if len({part.shape[-1] for part in parts}) > 1:  # SAM's last is its neck's
            names = ", ".join(map(str, self.layer))
            raise WeightsError(f"layers {names} are of unequal width, and cannot be joined")
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _set_shape(self, spec: EncoderSpec, *, width: int, patch: int, prefix_tokens: int) -> None:
        """Set width and the facts of the spec, after `layer`, `resolution` and `grid`."""
        self.width = width * len(self.layer)
        self.spec = replace(
            spec,
            width=width,
            depth=self.blocks,
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

    Raises:
        WeightsError: a patch token is not finite.
    """
    waiting = iter(images)
    while batch := list(islice(waiting, batch_size)):
        yield finite_tokens(encoder, encoder(encoder.pixels(batch)).float().cpu())


def finite_tokens(encoder: Encoder, tokens: Tensor) -> Tensor:
    """Return patch tokens `(B, N, D)` as they are.

    Raises:
        WeightsError: one is not finite; says in what dtype the encoder ran.
    """
    bad = int((~torch.isfinite(tokens)).flatten(1).any(1).sum())
    if bad:
        dtype = str(encoder.dtype).removeprefix("torch.")
        hint = (
            "check its weights and the mean and std of its preprocessing"
            if encoder.dtype == torch.float32
            else "set its dtype to float32"
        )
        raise WeightsError(
            f"encoder {encoder.spec.name}: its patch tokens are not finite for {bad} of "
            f"{len(tokens)} images, in {dtype}; {hint}"
        )
    return tokens


def flat_map(map_BDhw: Tensor) -> TokensAndGrid:
    """Return the tokens of `(B, D, h, w)`."""
    return map_BDhw.flatten(2).transpose(1, 2), (map_BDhw.shape[2], map_BDhw.shape[3])


class CombinedEncoder(Encoder):
    """Encoders side by side; each sees the image through its own preprocessing.

    The first encoder's grid is the common one; other grids are resized to it bilinearly. Pixels
    of all encoders travel as one `(3, H, W)` tensor, stacked along the height and padded to the
    widest, since the contract knows one tensor per image.
    """

    def __init__(self, spec: EncoderSpec, encoders: Sequence[Encoder]) -> None:
        super().__init__()
        self.backbone = nn.ModuleList(encoders)
        self.spec = spec
        self.grid = encoders[0].grid
        self.width = sum(encoder.width for encoder in encoders)
        self.resolution = (
            sum(encoder.resolution[0] for encoder in encoders),
            max(encoder.resolution[1] for encoder in encoders),
        )
        self.layer = encoders[0].layer
        self.pretrained = all(encoder.pretrained for encoder in encoders)
        self.remote_code = any(encoder.remote_code for encoder in encoders)
        revisions = [encoder.weights_revision for encoder in encoders]
        self.weights_revision = (
            "+".join(r or "unpinned" for r in revisions) if any(revisions) else None
        )
        self.notes = tuple(note for encoder in encoders for note in encoder.notes)

    @property
    def _encoders(self) -> list[Encoder]:
        return [encoder for encoder in self.backbone if isinstance(encoder, Encoder)]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, N, D1 + D2 + ...)` tokens on the first encoder's grid."""
        top, parts = 0, []
        for encoder in self._encoders:
            height, width = encoder.resolution
            tokens = encoder(pixels[:, :, top : top + height, :width])
            if encoder.grid != self.grid:
                map_BDhw = tokens.transpose(1, 2).reshape(len(tokens), -1, *encoder.grid)
                tokens, _ = flat_map(F.interpolate(map_BDhw, self.grid, mode="bilinear"))
            parts.append(tokens)
            top += height
        return torch.cat(parts, dim=-1)

    def transform(self, image: Image) -> Tensor:
        """Return each encoder's pixels, stacked along the height."""
        parts = [encoder.transform(image) for encoder in self._encoders]
        widest = self.resolution[1]
        return torch.cat([F.pad(part, (0, widest - part.shape[2])) for part in parts], dim=1)

    @property
    def transform_description(self) -> str:
        """Every encoder's own, in order."""
        return " + ".join(encoder.transform_description for encoder in self._encoders)
