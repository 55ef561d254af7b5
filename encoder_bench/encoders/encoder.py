"""The contract that every visual encoder meets: an image's pixels in, its patch tokens out.

What belongs here: the abstract contract. Loading weights lives in one module a source
(`timm.py`, `open_clip.py`, `transformers.py`, `bundled.py`), names in `catalog` and `registry.py`.

Axes: B images, H and W pixels, N patch tokens, h and w the patch grid (N = h * w), D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL.Image import Image

    from encoder_bench.encoders.spec import EncoderSpec


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
        pretrained: False only for the seeded random weights, which every output then marks.
        weights_revision: the Hub commit or file hash that was in fact loaded; None if unknown.
        remote_code: whether a repository's own Python code ran, as `--trust-remote-code` allows.
    """

    spec: EncoderSpec
    backbone: Any
    width: int
    grid: tuple[int, int]
    resolution: tuple[int, int]
    layer: tuple[int, ...]
    pretrained: bool
    weights_revision: str | None
    remote_code: bool = False

    @property
    def num_tokens(self) -> int:
        """N, the patch tokens of one image."""
        return self.grid[0] * self.grid[1]

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

    def fingerprint(self) -> str:
        """Return the sha256 of weights, transform and layer: equal exactly when features are."""
        from encoder_bench.base.hashing import hash_parameters, hash_text

        return hash_text(
            hash_parameters(self.backbone), self.transform_description, repr(self.layer)
        )
