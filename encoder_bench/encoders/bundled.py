"""The tiny encoders: each family's own architecture at 1 to 2 million parameters.

Weights that ship with the package are read like any other checkpoint; where there are none, the
same architecture is built with seeded random weights and says so (`pretrained` is False).
"""

from __future__ import annotations

from typing import Any

import torch

from encoder_bench.encoders.bundled_weights import bundled_folder, has_bundled_weights
from encoder_bench.encoders.hf import load_transformers
from encoder_bench.encoders.hf_encoder import TransformersEncoder
from encoder_bench.encoders.spec import EncoderSpec

_SEED = 20240607
_IMAGE, _PATCH = 64, 16
_SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": _IMAGE,
    "patch_size": _PATCH,
}


def load_bundled(
    spec: EncoderSpec, *, layer: tuple[int, ...], resolution: int | None, dtype: torch.dtype
) -> TransformersEncoder:
    """Return a tiny encoder, pretrained where its weights ship, else with seeded random weights.

    Raises:
        WeightsError: the shipped files are damaged.
    """
    folder = bundled_folder(spec.locator)
    if has_bundled_weights(spec.locator):
        return load_transformers(
            spec,
            str(folder),
            layer=layer,
            resolution=resolution,
            dtype=dtype,
            trust_remote_code=False,
        )
    return TransformersEncoder(
        spec,
        seeded_backbone(spec.family).to(dtype).eval(),
        tiny_processor(),
        layer=layer,
        resolution=resolution,
        pretrained=False,
        revision=None,
    )


def seeded_backbone(family: str) -> Any:
    """Return a family's tiny backbone with the same random weights at every call."""
    import transformers

    mlp = {"intermediate_size": 4 * _SHAPE["hidden_size"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        if family == "deit":
            config = transformers.DeiTConfig(**_SHAPE, **mlp)
            return transformers.DeiTModel(config, add_pooling_layer=False)
        if family == "clip":
            return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_SHAPE, **mlp))
        if family == "siglip":
            config = transformers.SiglipVisionConfig(**_SHAPE, **mlp, vision_use_head=False)
            return transformers.SiglipVisionModel(config)
        if family == "mae":
            config = transformers.ViTMAEConfig(**_SHAPE, **mlp, mask_ratio=0.0)
            return transformers.ViTMAEModel(config)
        if family in ("dino", "random"):
            config = transformers.ViTConfig(**_SHAPE, **mlp)
            return transformers.ViTModel(config, add_pooling_layer=False)
        return transformers.Dinov2Model(transformers.Dinov2Config(**_SHAPE, mlp_ratio=4))


def tiny_processor() -> Any:
    """Return the preprocessing of the tiny encoders: bicubic to 64 px, mean and std 0.5."""
    from transformers import ViTImageProcessor

    return ViTImageProcessor(
        size={"height": _IMAGE, "width": _IMAGE},
        resample=3,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
