"""Encoders in open_clip's layout: `ARCH/PRETRAINED` by tag, or with a checkpoint on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from encoder_bench.encoders.checkpoint import fetch_file, find_file, whole_loading
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.reading import explained
from encoder_bench.encoders.shape import token_shape
from encoder_bench.encoders.spec import EncoderSpec
from encoder_bench.errors import UnknownNameError, WeightsError

FILES = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin")
_PREPROCESSING = {
    "mean": "image_mean",
    "std": "image_std",
    "interpolation": "image_interpolation",
    "resize_mode": "image_resize_mode",
}
_HEADS = ("proj", "head.", "trunk.head.", "trunk.attn_pool.", "trunk.fc_norm.")


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


def open_clip_name(spec: EncoderSpec, *, tagged: bool) -> tuple[str, str, dict[str, Any]]:
    """Return architecture, tag, and what open_clip knows of the tag.

    Args:
        spec: `locator` is `ARCH/PRETRAINED`.
        tagged: whether the tag must be one of open_clip's.

    Raises:
        UnknownNameError: open_clip has no such architecture or tag.
    """
    import open_clip

    architecture, _, tag = spec.locator.partition("/")
    if architecture not in open_clip.list_models():
        raise UnknownNameError("open_clip architecture", architecture, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tagged and tag not in tags:
        raise UnknownNameError(f"open_clip tag of {architecture}", tag, tags)
    return architecture, tag, open_clip.get_pretrained_cfg(architecture, tag) or {}


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

    architecture, tag, facts = open_clip_name(spec, tagged=weights is None)
    if weights is not None:
        file, revision = find_file(spec, weights)
    else:
        repository = str(facts.get("hf_hub", "")).rstrip("/")
        if not repository:
            raise WeightsError(
                f"encoder {spec.name}: open_clip has no Hub repository for {architecture}/{tag}; "
                "download its checkpoint, convert it to safetensors and pass --weights PATH"
            )
        file, revision = fetch_file(spec, repository, FILES)
    with (
        explained(spec.name, str(file)),
        whole_loading(spec.name, str(file), heads=_HEADS, only="visual."),
    ):
        model, _, transform = open_clip.create_model_and_transforms(
            architecture,
            pretrained=str(file),
            force_image_size=resolution,
            weights_only=True,
            **build_options(facts),
        )
    return OpenClipEncoder(
        spec,
        model.visual.to(dtype).eval(),
        transform,
        layer=layer,
        resolution=image_size(model),
        revision=revision,
    )


def build_options(facts: dict[str, Any]) -> dict[str, Any]:
    """Return activation and preprocessing that a tag's weights need, for `create_model`.

    A checkpoint that is given as a file knows neither; both go with the tag.
    """
    options: dict[str, Any] = {"force_quick_gelu": bool(facts.get("quick_gelu"))}
    for key, option in _PREPROCESSING.items():
        if facts.get(key) is not None:
            options[option] = facts[key]
    return options


def image_size(model: Any) -> tuple[int, int]:
    """Return (H, W) pixels that a model was built for."""
    size = model.visual.image_size
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
