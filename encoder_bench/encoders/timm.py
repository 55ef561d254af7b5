"""Checkpoints in timm's layout: by name from the Hub, from their authors' address, or from disk.

What belongs here: timm's names, and reading. What is made of the tokens is `timm_encoder.py`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from encoder_bench.base.errors import UnknownNameError, WeightsError
from encoder_bench.encoders.checkpoint import fetch_file, find_file, strict_loading
from encoder_bench.encoders.external_checkpoint import authors_file, is_address
from encoder_bench.encoders.loading import explained
from encoder_bench.encoders.spec import EncoderSpec
from encoder_bench.encoders.timm_encoder import TimmEncoder

_HEADS = (
    "head.", "head_dist.", "fc.", "classifier.", "fc_norm.", "attn_pool.", "head_drop.",
    "masked_embed",
)  # fmt: skip
_ANY_SIZE = ("convnext", "fastvit", "resnet", "inception_next", "focalnet", "byobnet")
_NEEDS_QUICK_GELU = {"vit_base_patch16_clip_224.dfn2b": "open_clip:ViT-B-16-quickgelu/dfn2b"}


def timm_name(spec: EncoderSpec) -> tuple[str, str | None]:
    """Split `NAME@PLACE` into timm's name and where else its weights are.

    Args:
        spec: `locator` is timm's name, alone or with a Hub repository or an address after an `@`.

    Returns:
        The name, and the repository or address; None where timm's own record says where.

    Raises:
        UnknownNameError: timm has no such model, or no such pretrained tag of it.
        WeightsError: weights trained with QuickGELU in an architecture with plain GELU.
    """
    import timm

    name, _, place = spec.locator.partition("@")
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise UnknownNameError("timm model", base, timm.list_models())
    tags = timm.list_pretrained(f"{base}.*")
    if tag and name not in tags:
        raise UnknownNameError(f"timm tag of {base}", name, tags)
    twin = name.replace("_clip_", "_clip_quickgelu_", 1)
    right = f"timm:{twin}" if twin in timm.list_pretrained() else _NEEDS_QUICK_GELU.get(name)
    if "_clip_" in name and "quickgelu" not in name and right:
        raise WeightsError(
            f"encoder {spec.name}: these CLIP weights were trained with QuickGELU, and timm's "
            f"{base} has plain GELU; use {right}"
        )
    return name, place or None


def build_timm(
    spec: EncoderSpec, resolution: int | None = None, *, pretrained: bool = False, **overlay: Any
) -> Any:
    """Return timm's model without a classifier, on torch's default device.

    Args:
        spec: its `architecture` and `preprocessing` stand above what timm records of the name.
        resolution: pixels of a side; None for the name's own.
        pretrained: whether weights are read.
        **overlay: what else stands above timm's record (`file`).
    """
    import timm

    name, _ = timm_name(spec)
    size = {"img_size": resolution} if resolution and _takes_image_size(name) else {}
    return timm.create_model(
        name,
        pretrained=pretrained,
        num_classes=0,
        pretrained_cfg_overlay={**spec.preprocessing, **overlay},
        **size,
        **spec.architecture,
    )


def load_timm(
    spec: EncoderSpec,
    weights: Path | None,
    *,
    layer: tuple[int, ...],
    resolution: int | None,
    dtype: torch.dtype,
) -> TimmEncoder:
    """Load a timm model.

    Args:
        spec: the catalogue's record; see `timm_name`.
        weights: a safetensors file, or a folder with `model.safetensors`, instead of the download.
        layer: blocks whose tokens are returned.
        resolution: pixels of a side; position embeddings are interpolated by timm.
        dtype: of the weights.

    Raises:
        UnknownNameError: timm has no such model.
        WeightsError: unreachable, damaged, or not whole.
    """
    name, place = timm_name(spec)
    file, revision = _find(spec, name, place, weights)
    overlay = {"file": str(file), "custom_load": False}
    with explained(spec.name, str(file)), strict_loading(spec.name, str(file), heads=_HEADS):
        backbone = build_timm(spec, resolution, pretrained=True, **overlay)
    return TimmEncoder(
        spec, backbone.to(dtype).eval(), layer=layer, resolution=resolution, revision=revision
    )


def _find(
    spec: EncoderSpec, name: str, place: str | None, weights: Path | None
) -> tuple[Path, str]:
    """Return the verified file with the weights, and which revision it is."""
    import timm

    if place is not None and is_address(place):
        return authors_file(spec, place, weights)
    if weights is not None:
        return find_file(spec, weights)
    facts = timm.get_pretrained_cfg(name)
    repository = place or (facts.hf_hub_id if facts is not None else None)
    if not repository:
        raise WeightsError(
            f"encoder {spec.name}: timm has no weights of {name} on the Hub; pass --weights PATH, "
            "or choose a tag of timm.list_pretrained()"
        )
    return fetch_file(spec, repository, _file_names(facts))


def _file_names(facts: Any) -> tuple[str, ...]:
    """Return the names of weights files in a repository, safetensors first."""
    stated = getattr(facts, "hf_hub_filename", None)
    first = () if not stated else (str(Path(stated).with_suffix(".safetensors")), str(stated))
    return (*first, "model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")


def _takes_image_size(name: str) -> bool:
    """Return whether the architecture is built for one image size: all but convolutional ones."""
    import timm

    module = timm.model_entrypoint(name.partition(".")[0]).__module__
    return module.rsplit(".", 1)[-1] not in _ANY_SIZE
