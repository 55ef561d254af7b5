"""Checkpoints in transformers' layout: from the Hub, or from a folder, read whole or not at all.

What belongs here: finding, checking and reading. Which class reads an architecture is
`transformers_architectures.py`'s, what is made of its tokens `transformers_encoder.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from encoder_bench.base.errors import UnknownNameError, WeightsError
from encoder_bench.base.hub import is_cached, is_reachable
from encoder_bench.encoders.hf_architectures import (
    ARCHITECTURES,
    FAMILY_TYPES,
    Architecture,
    loading_options,
)
from encoder_bench.encoders.hf_encoder import TransformersEncoder
from encoder_bench.encoders.hf_remote import REMOTE, checked_architecture, has_own_class
from encoder_bench.encoders.integrity import file_hash, verify_weights
from encoder_bench.encoders.loading import explained, quiet_loading, unreachable
from encoder_bench.encoders.spec import EncoderSpec


def load_transformers(
    spec: EncoderSpec,
    place: str,
    *,
    layer: tuple[int, ...],
    resolution: int | None,
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> TransformersEncoder:
    """Load a vision tower from the Hub or a folder in transformers' layout.

    Args:
        spec: the catalogue's record.
        place: a Hub repository or a folder.
        layer: see `TransformersEncoder`.
        resolution: see `TransformersEncoder`.
        dtype: of the weights.
        trust_remote_code: let the repository run its own code; a model class of its own is used
            where the architecture is not known here.

    Raises:
        WeightsError: unreachable, damaged, of an architecture that is not known, of another
            family than the name says, or with parameters left at random values.
    """
    from transformers import AutoConfig, AutoImageProcessor

    if not Path(place).is_dir() and not is_cached(place, spec.revision) and not is_reachable(place):
        raise unreachable(spec.name, place)
    arguments: dict[str, Any] = {
        "revision": spec.revision,
        "trust_remote_code": trust_remote_code,
    }
    with explained(spec.name, place):
        config = AutoConfig.from_pretrained(place, **arguments)
        architecture = _architecture(spec, config, place, trust_remote_code)
        processor = AutoImageProcessor.from_pretrained(place, **arguments)
        backbone = _load_backbone(spec, place, architecture, config, dtype, arguments)
    folder = _folder(place, spec.revision)
    if folder is not None:
        verify_weights(spec.name, folder)
    _check_size(spec, backbone.config, place)
    backbone.eval()
    if backbone.config.model_type == "vit_mae":
        backbone.config.mask_ratio = 0.0
    if architecture is REMOTE:
        architecture = checked_architecture(spec.name, place, backbone, processor, layer)
    from_hub = folder is not None and not Path(place).is_dir()
    revision = folder.name if folder is not None and from_hub else _weights_hash(folder)
    return TransformersEncoder(
        spec,
        backbone,
        processor,
        layer=layer,
        resolution=resolution,
        pretrained=True,
        revision=revision,
        remote_code=trust_remote_code and bool(getattr(config, "auto_map", None)),
        architecture=architecture,
    )


def _folder(place: str, revision: str | None) -> Path | None:
    """Return where the files of a repository or folder lie; a Hub snapshot's is its commit."""
    from huggingface_hub import try_to_load_from_cache

    if Path(place).is_dir():
        return Path(place)
    configuration = try_to_load_from_cache(place, "config.json", revision=revision)
    return Path(configuration).parent if isinstance(configuration, str) else None


def _weights_hash(folder: Path | None) -> str | None:
    """Return the sha256 of a folder's one weights file; None where it has several."""
    file = None if folder is None else folder / "model.safetensors"
    return f"sha256:{file_hash(file)}" if file is not None and file.is_file() else None


def _architecture(
    spec: EncoderSpec, config: Any, place: str, trust_remote_code: bool
) -> Architecture:
    model_type = str(config.model_type)
    foreign = model_type not in ARCHITECTURES
    if foreign and spec.family not in FAMILY_TYPES and has_own_class(config) and trust_remote_code:
        return REMOTE
    if foreign:
        raise UnknownNameError(
            "vision architecture",
            model_type,
            ARCHITECTURES,
            f"(in {place}); `timm:NAME` or `open_clip:ARCH/PRETRAINED` may have it.",
        )
    expected = FAMILY_TYPES.get(spec.family)
    if expected and model_type not in expected:
        raise WeightsError(
            f"encoder {spec.name}: {place} holds a '{model_type}', not a {spec.family}; "
            "the weights are not those that the name stands for"
        )
    return ARCHITECTURES[model_type]


def _check_size(spec: EncoderSpec, config: Any, place: str) -> None:
    """Check that a named encoder's weights have the width and depth that the catalogue states.

    Raises:
        WeightsError: they are another size of the family.
    """
    if getattr(config, "num_hidden_layers", None) is None or spec.depth is None:
        return
    found = (int(config.hidden_size), int(config.num_hidden_layers))
    stated = (spec.width or found[0], spec.depth or found[1])
    if found != stated:
        raise WeightsError(
            f"encoder {spec.name}: {place} is {found[0]} wide with {found[1]} blocks, the name "
            f"stands for {stated[0]} and {stated[1]}; load it as dir:PATH or hf:REPO instead"
        )


def _load_backbone(
    spec: EncoderSpec,
    place: str,
    architecture: Architecture,
    config: Any,
    dtype: torch.dtype,
    arguments: dict[str, Any],
) -> Any:
    import transformers

    model_class = getattr(transformers, architecture.model_class)
    options = loading_options(architecture, config)
    # Read already, and not again; but a tower's own configuration may lie in a larger model's.
    if architecture is not REMOTE and isinstance(config, model_class.config_class):
        settings = {name for name in options if hasattr(config, name)}
        for name in settings:
            setattr(config, name, options.pop(name))
        options["config"] = config
    with quiet_loading():
        backbone, report = model_class.from_pretrained(
            place,
            output_loading_info=True,
            dtype=dtype,
            use_safetensors=True if Path(place).is_dir() else None,
            key_mapping=architecture.renamed or None,
            **options,
            **arguments,
        )
    _check_whole(spec, place, architecture, backbone.base_model_prefix, report)
    return backbone


def _check_whole(
    spec: EncoderSpec,
    place: str,
    architecture: Architecture,
    prefix: str,
    report: Mapping[str, Iterable[str]],
) -> None:
    """Check that every parameter was read from the checkpoint and that it holds no other.

    Raises:
        WeightsError: names the first missing or unexpected parameter outside heads.
    """
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(problem, ()))
        if names:
            raise WeightsError(
                f"encoder {spec.name}: {place} leaves {len(names)} parameters at random values "
                f"({problem.replace('_', ' ')}), the first {names[0]}"
            )
    ignored_keys = sorted(
        str(name)
        for name in report.get("unexpected_keys", ())
        if not str(name).removeprefix(f"{prefix}.").startswith(architecture.ignored_keys)
    )
    if ignored_keys:
        raise WeightsError(
            f"encoder {spec.name}: {place} holds {len(ignored_keys)} parameters that a "
            f"{architecture.model_class} does not have, the first {ignored_keys[0]}"
        )
