"""The tiny encoders: each family's own architecture at 1 to 2 million parameters.

Where no weights ship with the package they are seeded random ones, and `pretrained` is False.
Importing this module imports no torch.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encoder_bench.encoders.catalog import EncoderSpec
    from encoder_bench.encoders.encoder import LoadOptions
    from encoder_bench.encoders.hf import HfEncoder

_SEED = 20240607
_SIDE = 72
_SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": _SIDE,
    "patch_size": 12,
    "initializer_range": 0.08,
}
_TYPES = {
    "deit": "vit",
    "clip": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "mae": "vit",
    "dino": "vit",
    "random": "vit",
    "dinov2": "dinov2",
}


def bundled_folder(name: str) -> Path:
    """Return where the weights of a tiny encoder ship; the folder may not exist."""
    return Path(str(resources.files("encoder_bench"))) / "bundled" / "encoders" / name


def has_bundled_weights(name: str) -> bool:
    """Return whether the weights of a tiny encoder ship with this installation."""
    return (bundled_folder(name) / "model.safetensors").is_file()


def load_bundled(spec: EncoderSpec, options: LoadOptions) -> HfEncoder:
    """Return a tiny encoder, pretrained where its weights ship; raises as `load_hf`."""
    from encoder_bench.encoders.hf import HfEncoder, load_hf

    if has_bundled_weights(spec.locator):
        return load_hf(spec, str(bundled_folder(spec.locator)), options)
    backbone = (tiny_backbone if options.random_weights else seeded_backbone)(spec.family)
    encoder = HfEncoder(spec, backbone.to(options.dtype).eval(), tiny_processor(), options)
    encoder.pretrained = False
    return encoder


def tiny_backbone(family: str) -> Any:
    """Return a family's tiny backbone with transformers' own initialisation."""
    from encoder_bench.encoders.hf_architectures import build_backbone

    mlp = {"mlp_ratio": 4} if family == "dinov2" else {"intermediate_size": 512}
    return build_backbone({"model_type": _TYPES[family], **_SHAPE, **mlp})


def seeded_backbone(family: str) -> Any:
    """Return a family's tiny backbone with the same random weights at every call."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return tiny_backbone(family)


def tiny_processor(side: int = _SIDE) -> Any:
    """Return the preprocessing of the tiny encoders: bicubic to `side` px, mean and std 0.5."""
    from transformers import ViTImageProcessor

    return ViTImageProcessor(
        size={"height": side, "width": side},
        resample=3,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
