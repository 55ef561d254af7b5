"""Checkpoints in open_clip's layout: `ARCH/PRETRAINED` by tag, or from disk.

What belongs here: open_clip's names, and reading. What is made of the tokens is
`open_clip_encoder.py`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from encoder_bench.base.errors import UnknownNameError, WeightsError
from encoder_bench.encoders.checkpoint import fetch_file, find_file, strict_loading
from encoder_bench.encoders.loading import explained
from encoder_bench.encoders.open_clip_encoder import OpenClipEncoder
from encoder_bench.encoders.spec import EncoderSpec

FILES = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin")
_PREPROCESSING = {
    "mean": "image_mean",
    "std": "image_std",
    "interpolation": "image_interpolation",
    "resize_mode": "image_resize_mode",
}
_HEADS = ("proj", "head.", "trunk.head.", "trunk.attn_pool.", "trunk.fc_norm.")


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
        strict_loading(spec.name, str(file), heads=_HEADS, only="visual."),
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
