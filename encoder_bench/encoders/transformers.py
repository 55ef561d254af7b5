"""Encoders in transformers' layout: from the Hub, from a folder, or from an object just built.

What belongs here: which class and how many prefix tokens each architecture has, and the checks
that every parameter was read. An architecture that is not listed is an error, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.reading import explained, quiet_loading, unreachable
from encoder_bench.encoders.spec import EncoderSpec
from encoder_bench.errors import UnknownNameError, WeightsError
from encoder_bench.hub import is_cached, is_reachable


@dataclass(frozen=True, slots=True)
class _Architecture:
    """How a model type is loaded and read.

    Attributes:
        model_class: transformers' class of the vision tower.
        prefix_tokens: class and distillation tokens before the patch tokens; registers, whose
            number the configuration gives, come on top.
        options: arguments that leave out a pooling head, which no patch token depends on.
        surplus: beginnings of parameter names of such heads, and of other towers, that a
            checkpoint may hold besides.
        asks_interpolation: whether another resolution has to be asked for by an argument.
    """

    model_class: str
    prefix_tokens: int
    options: dict[str, Any]
    surplus: tuple[str, ...]
    asks_interpolation: bool = True


_HEADS = ("pooler.", "head.", "classifier.", "cls_classifier.", "distillation_classifier.")
_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
_NO_POOLER = {"add_pooling_layer": False}

_ARCHITECTURES: dict[str, _Architecture] = {
    "deit": _Architecture("DeiTModel", 2, _NO_POOLER, _HEADS),
    "vit": _Architecture("ViTModel", 1, _NO_POOLER, _HEADS),
    "vit_mae": _Architecture("ViTMAEModel", 1, {}, ("decoder.",)),
    "clip": _Architecture("CLIPVisionModel", 1, {}, _TEXT),
    "clip_vision_model": _Architecture("CLIPVisionModel", 1, {}, _TEXT),
    "siglip": _Architecture("SiglipVisionModel", 0, {"vision_use_head": False}, _HEADS + _TEXT),
    "siglip_vision_model": _Architecture(
        "SiglipVisionModel", 0, {"vision_use_head": False}, _HEADS + _TEXT
    ),
    "dinov2": _Architecture("Dinov2Model", 1, {}, _HEADS, asks_interpolation=False),
    "dinov2_with_registers": _Architecture(
        "Dinov2WithRegistersModel", 1, {}, _HEADS, asks_interpolation=False
    ),
}


class TransformersEncoder(Encoder):
    """A vision tower of transformers with its own image processor."""

    def __init__(
        self,
        spec: EncoderSpec,
        backbone: Any,
        processor: Any,
        *,
        layer: tuple[int, ...],
        resolution: int | None,
        pretrained: bool,
        revision: str | None,
    ) -> None:
        """Wrap a loaded tower.

        Args:
            spec: the catalogue's record.
            backbone: transformers' module.
            processor: its image processor; its size is set where `resolution` is given.
            layer: blocks whose tokens are returned, joined along channels.
            resolution: pixels of a side; None for the checkpoint's own.
            pretrained: False for seeded random weights.
            revision: what was in fact loaded.

        Raises:
            WeightsError: a layer or a resolution that this tower does not have.
        """
        super().__init__()
        self.backbone = backbone
        self._architecture = _ARCHITECTURES[backbone.config.model_type]
        config = backbone.config
        self.processor = _resized(processor, resolution) if resolution else processor
        self.resolution = _output_size(self.processor)
        patch = int(config.patch_size)
        if self.resolution[0] % patch or self.resolution[1] % patch:
            raise WeightsError(
                f"encoder {spec.name}: {self.resolution[0]} pixels are not a multiple of its "
                f"patch of {patch}; choose another --resolution"
            )
        depth = int(config.num_hidden_layers)
        for index in layer:
            if not -depth <= index < depth:
                raise WeightsError(
                    f"encoder {spec.name}: --layer {index} is none of its {depth} blocks "
                    f"(0 to {depth - 1}, or -{depth} to -1)"
                )
        self.spec = replace(spec, width=int(config.hidden_size), depth=depth, patch=patch)
        self.grid = (self.resolution[0] // patch, self.resolution[1] // patch)
        self.layer = layer
        self.width = int(config.hidden_size) * len(layer)
        self.pretrained = pretrained
        self.weights_revision = revision
        registers = int(getattr(config, "num_register_tokens", 0) or 0)
        self._prefix_tokens = self._architecture.prefix_tokens + registers
        self._interpolate = config.image_size != self.resolution[0]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, N, D)` patch tokens; see `Encoder.forward`.

        The last layer is the library's `last_hidden_state`, with the tower's final norm where it
        has one; an earlier layer is the block's output as it is, as LLaVA takes it.
        """
        arguments: dict[str, Any] = {"pixel_values": pixels.to(self.backbone.dtype)}
        if self._interpolate and self._architecture.asks_interpolation:
            arguments["interpolate_pos_encoding"] = True
        if self.backbone.config.model_type == "vit_mae":
            # Noise in rising order keeps every patch in its place; the mask ratio is 0.
            order = torch.arange(self.num_tokens, device=pixels.device, dtype=torch.float32)
            arguments["noise"] = order.expand(len(pixels), -1)
        last = self._last
        only_last = all(index in (-1, last) for index in self.layer)
        output = self.backbone(**arguments, output_hidden_states=not only_last)
        chosen = [
            output.last_hidden_state
            if index in (-1, last)
            else output.hidden_states[index + 1 if index >= 0 else index]
            for index in self.layer
        ]
        tokens = torch.cat(chosen, dim=-1) if len(chosen) > 1 else chosen[0]
        return tokens[:, self._prefix_tokens :]

    @property
    def _last(self) -> int:
        return int(self.backbone.config.num_hidden_layers) - 1

    def transform(self, image: Image) -> Tensor:
        """Return `(3, H, W)` pixels as the checkpoint's own processor makes them."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels.float()

    @property
    def transform_description(self) -> str:
        """The processor's settings, sorted."""
        settings = self.processor.to_dict()
        kept = (
            "do_center_crop",
            "crop_size",
            "do_resize",
            "size",
            "resample",
            "image_mean",
            "image_std",
            "rescale_factor",
        )
        return ", ".join(f"{key}={settings[key]}" for key in kept if settings.get(key) is not None)


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
        trust_remote_code: let the repository run its own code.

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
        architecture = _architecture(spec, config.model_type, place)
        processor = AutoImageProcessor.from_pretrained(place, **arguments)
        backbone = _load_backbone(spec, place, architecture, dtype, arguments)
    _check_size(spec, backbone.config, place)
    if backbone.config.model_type == "vit_mae":
        backbone.config.mask_ratio = 0.0
    revision = getattr(config, "_commit_hash", None) or spec.revision
    return TransformersEncoder(
        spec,
        backbone.eval(),
        processor,
        layer=layer,
        resolution=resolution,
        pretrained=True,
        revision=revision,
    )


def _architecture(spec: EncoderSpec, model_type: str, place: str) -> _Architecture:
    if model_type not in _ARCHITECTURES:
        raise UnknownNameError(
            "vision architecture",
            model_type,
            _ARCHITECTURES,
            f"(in {place}); `timm:NAME` or `open_clip:ARCH/PRETRAINED` may have it.",
        )
    expected = _FAMILY_TYPES.get(spec.family)
    if expected and model_type not in expected:
        raise WeightsError(
            f"encoder {spec.name}: {place} holds a '{model_type}', not a {spec.family}; "
            "the weights are not those that the name stands for"
        )
    return _ARCHITECTURES[model_type]


def _check_size(spec: EncoderSpec, config: Any, place: str) -> None:
    """Check that a named encoder's weights have the width and depth that the catalogue states.

    Raises:
        WeightsError: they are another size of the family.
    """
    found = (int(config.hidden_size), int(config.num_hidden_layers))
    stated = (spec.width or found[0], spec.depth or found[1])
    if found != stated:
        raise WeightsError(
            f"encoder {spec.name}: {place} is {found[0]} wide with {found[1]} blocks, the name "
            f"stands for {stated[0]} and {stated[1]}; load it as dir:PATH or hf:REPO instead"
        )


_FAMILY_TYPES = {
    "deit": {"deit", "vit"},  # the checkpoints without a distillation token are plain ViTs
    "clip": {"clip", "clip_vision_model"},
    "siglip": {"siglip", "siglip_vision_model"},
    "mae": {"vit_mae"},
    "dino": {"vit"},
    "dinov2": {"dinov2", "dinov2_with_registers"},
}


def _load_backbone(
    spec: EncoderSpec,
    place: str,
    architecture: _Architecture,
    dtype: torch.dtype,
    arguments: dict[str, Any],
) -> Any:
    import transformers

    with quiet_loading():
        backbone, report = getattr(transformers, architecture.model_class).from_pretrained(
            place,
            output_loading_info=True,
            dtype=dtype,
            use_safetensors=True if Path(place).is_dir() else None,
            **architecture.options,
            **arguments,
        )
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(problem, ()))
        if names:
            raise WeightsError(
                f"encoder {spec.name}: {place} leaves {len(names)} parameters at random values "
                f"({problem.replace('_', ' ')}), the first {names[0]}"
            )
    surplus = sorted(
        name
        for name in report.get("unexpected_keys", ())
        if not name.startswith(architecture.surplus)
    )
    if surplus:
        raise WeightsError(
            f"encoder {spec.name}: {place} holds {len(surplus)} parameters that a "
            f"{architecture.model_class} does not have, the first {surplus[0]}"
        )
    return backbone


def _output_size(processor: Any) -> tuple[int, int]:
    """Return (H, W) after a processor's resize and crop.

    Raises:
        WeightsError: the processor keeps each image's own size.
    """
    settings = processor.to_dict()
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if isinstance(size, int):
        return size, size
    size = dict(size or {})
    if "height" in size and "width" in size and size["height"]:
        return int(size["height"]), int(size["width"])
    raise WeightsError(f"its image processor gives no fixed size ({size}); pass --resolution")


def _resized(processor: Any, resolution: int) -> Any:
    """Return the processor with another output size; resize and crop keep their ratio."""
    settings = processor.to_dict()
    square = {"height": resolution, "width": resolution}
    changes: dict[str, Any] = {}
    if settings.get("do_center_crop") and settings.get("crop_size"):
        changes["crop_size"] = square
        edge = dict(settings["size"]).get("shortest_edge")
        crop = dict(settings["crop_size"])["height"]
        changes["size"] = {"shortest_edge": round(edge * resolution / crop)} if edge else square
    else:
        changes["size"] = square
    return type(processor).from_dict(settings | changes)
