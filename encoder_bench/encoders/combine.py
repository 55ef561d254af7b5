"""Two or more encoders at once: their tokens on a common grid, joined along channels."""

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.spec import EncoderSpec


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
        self.weights_revision = "+".join(e.weights_revision or "unpinned" for e in encoders)
        self.notes = tuple(note for encoder in encoders for note in encoder.notes)

    @property
    def _encoders(self) -> list[Encoder]:
        return [encoder for encoder in self.backbone if isinstance(encoder, Encoder)]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, N, D1 + D2 + ...)` tokens on the first encoder's grid."""
        top, tokens = 0, []
        for encoder in self._encoders:
            height, width = encoder.resolution
            part = encoder(pixels[:, :, top : top + height, :width])
            tokens.append(_on_grid(part, encoder.grid, self.grid))
            top += height
        return torch.cat(tokens, dim=-1)

    def transform(self, image: Image) -> Tensor:
        """Return each encoder's pixels, stacked along the height."""
        parts = [encoder.transform(image) for encoder in self._encoders]
        widest = self.resolution[1]
        return torch.cat([F.pad(part, (0, widest - part.shape[2])) for part in parts], dim=1)

    @property
    def transform_description(self) -> str:
        """Every encoder's own, in order."""
        return " + ".join(encoder.transform_description for encoder in self._encoders)


def _on_grid(tokens: Tensor, grid: tuple[int, int], common: tuple[int, int]) -> Tensor:
    if grid == common:
        return tokens
    maps = tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)
    resized = F.interpolate(maps, size=common, mode="bilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2)
