"""Encoders in transformers' layout: from the Hub, from a folder, or from an object just built.

What belongs here: which class and how many prefix tokens each architecture has, and the checks
that every parameter was read. An architecture that is not listed is an error, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.integrity import file_hash, verify_weights
from encoder_bench.encoders.reading import explained, quiet_loading, unreachable
from encoder_bench.encoders.spec import EncoderSpec
from encoder_bench.errors import UnknownNameError, WeightsError
from encoder_bench.hub import is_cached, is_reachable


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a model type is loaded and read.

    Attributes:
        model_class: transformers' class of the vision tower.
        prefix_tokens: class and distillation tokens before the patch tokens; registers, whose
            number the configuration gives, come on top.
        options: arguments that leave out a pooling head, which no patch token depends on.
        surplus: beginnings of parameter names of such heads, and of other towers, that a
            checkpoint may hold besides.
        other_sizes: how another resolution is had: `argument` asks for interpolated position
            embeddings, `always` takes any, `never` none.
        final_norm: the module that norms the last block's tokens where `last_hidden_state` comes
            before it; every source gives its last layer normed.
        hierarchical: the last stage's map is the tokens, and blocks cannot be chosen.
    """

    model_class: str
    prefix_tokens: int
    options: dict[str, Any] = field(default_factory=dict)
    surplus: tuple[str, ...] = ()
    other_sizes: Literal["argument", "always", "never"] = "argument"
    final_norm: str | None = None
    hierarchical: bool = False


_HEADS = ("pooler.", "head.", "classifier.", "cls_classifier.", "distillation_classifier.")
_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
_NO_POOLER = {"add_pooling_layer": False}
_CLIP = Architecture("CLIPVisionModel", 1, {}, _TEXT, final_norm="post_layernorm")
_SIGLIP = Architecture("SiglipVisionModel", 0, {"vision_use_head": False}, _HEADS + _TEXT)
_MASKED = ("lm_head.", *_HEADS)

ARCHITECTURES: dict[str, Architecture] = {
    "deit": Architecture("DeiTModel", 2, _NO_POOLER, _HEADS),
    "vit": Architecture("ViTModel", 1, _NO_POOLER, _HEADS),
    "vit_mae": Architecture("ViTMAEModel", 1, {}, ("decoder.",)),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": Architecture("Dinov2Model", 1, {}, _HEADS, other_sizes="always"),
    "dinov2_with_registers": Architecture(
        "Dinov2WithRegistersModel", 1, {}, _HEADS, other_sizes="always"
    ),
    "dinov3_vit": Architecture("DINOv3ViTModel", 1, other_sizes="always"),
    "ijepa": Architecture("IJepaModel", 0, _NO_POOLER, _HEADS),
    "beit": Architecture("BeitModel", 1, _NO_POOLER, _MASKED),
    "data2vec-vision": Architecture("Data2VecVisionModel", 1, _NO_POOLER, _MASKED),
    "vit_msn": Architecture("ViTMSNModel", 1, {}, _HEADS),
    "aimv2": Architecture(
        "Aimv2VisionModel", 0, {"use_head": False}, _HEADS + _TEXT, other_sizes="never"
    ),
    "aimv2_vision_model": Architecture(
        "Aimv2VisionModel", 0, {"use_head": False}, _HEADS, other_sizes="never"
    ),
    "swin": Architecture("SwinModel", 0, _NO_POOLER, _HEADS, hierarchical=True),
    "swinv2": Architecture("Swinv2Model", 0, _NO_POOLER, _HEADS, hierarchical=True),
    "convnext": Architecture(
        "ConvNextModel", 0, {}, _HEADS, other_sizes="always", hierarchical=True
    ),
    "convnextv2": Architecture(
        "ConvNextV2Model", 0, {}, _HEADS, other_sizes="always", hierarchical=True
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
        architecture = ARCHITECTURES[backbone.config.model_type]
        self._architecture = architecture
        config = backbone.config
        self.processor = _resized(processor, resolution) if resolution else processor
        self.resolution = _output_size(self.processor)
        self.layer = layer
        self.pretrained = pretrained
        self.weights_revision = revision
        registers = int(getattr(config, "num_register_tokens", 0) or 0)
        self._prefix_tokens = architecture.prefix_tokens + registers
        self._resized = config.image_size not in (self.resolution[0], list(self.resolution))
        if self._resized and architecture.other_sizes == "never":
            raise WeightsError(
                f"encoder {spec.name}: this architecture takes {config.image_size} pixels only, "
                f"not {self.resolution[0]}; leave --resolution out, or use its timm source"
            )
        if architecture.hierarchical:
            width, depth, patch = self._measure_last_stage(spec)
        else:
            width, depth, patch = self._check_blocks(spec)
        self.width = width * len(layer)
        self.spec = replace(
            spec,
            width=width,
            depth=depth,
            patch=patch,
            resolution=self.resolution[0],
            tokens=self.num_tokens,
            prefix_tokens=self._prefix_tokens,
            parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        )

    def _check_blocks(self, spec: EncoderSpec) -> tuple[int, int, int]:
        """Set the grid of a plain ViT; return width, depth and patch."""
        config = self.backbone.config
        patch, depth = int(config.patch_size), int(config.num_hidden_layers)
        # SigLIP's SO400M was trained at 384 px with a patch of 14: its own size may leave a rim.
        if self._resized and (self.resolution[0] % patch or self.resolution[1] % patch):
            raise WeightsError(
                f"encoder {spec.name}: {self.resolution[0]} pixels are not a multiple of its "
                f"patch of {patch}; choose another --resolution"
            )
        for index in self.layer:
            if not -depth <= index < depth:
                raise WeightsError(
                    f"encoder {spec.name}: --layer {index} is none of its {depth} blocks "
                    f"(0 to {depth - 1}, or -{depth} to -1)"
                )
        self.grid = (self.resolution[0] // patch, self.resolution[1] // patch)
        return int(config.hidden_size), depth, patch

    def _measure_last_stage(self, spec: EncoderSpec) -> tuple[int, None, int]:
        """Set the grid of a hierarchical model from a blank image; return width and stride."""
        if self.layer != (-1,):
            raise WeightsError(f"encoder {spec.name}: --layer works on plain stacks of blocks only")
        first = next(self.backbone.parameters())
        blank = torch.zeros(1, 3, *self.resolution, dtype=first.dtype, device=first.device)
        with torch.no_grad():
            features = self.backbone(pixel_values=blank).last_hidden_state
        if features.ndim == 4:
            self.grid = (features.shape[2], features.shape[3])
            return int(features.shape[1]), None, self.resolution[0] // self.grid[0]
        stride = round((self.resolution[0] * self.resolution[1] / features.shape[1]) ** 0.5)
        self.grid = (self.resolution[0] // stride, self.resolution[1] // stride)
        return int(features.shape[2]), None, stride

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, N, D)` patch tokens; see `Encoder.forward`.

        The last layer is the library's `last_hidden_state` under the tower's final norm (CLIP's
        `last_hidden_state` comes before it, as in no other source of the same weights); an earlier
        layer is the block's output as it is, as LLaVA takes it.
        """
        arguments: dict[str, Any] = {"pixel_values": pixels.to(self.backbone.dtype)}
        if self._resized and self._architecture.other_sizes == "argument":
            arguments["interpolate_pos_encoding"] = True
        if self.backbone.config.model_type == "vit_mae":
            # Noise in rising order keeps every patch in its place; the mask ratio is 0.
            order = torch.arange(self.num_tokens, device=pixels.device, dtype=torch.float32)
            arguments["noise"] = order.expand(len(pixels), -1)
        if self._architecture.hierarchical:
            features: Tensor = self.backbone(**arguments).last_hidden_state
            return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
        last = self._last
        only_last = all(index in (-1, last) for index in self.layer)
        output = self.backbone(**arguments, output_hidden_states=not only_last)
        chosen = [
            self._normed(output.last_hidden_state)
            if index in (-1, last)
            else output.hidden_states[index + 1 if index >= 0 else index]
            for index in self.layer
        ]
        tokens = torch.cat(chosen, dim=-1) if len(chosen) > 1 else chosen[0]
        return tokens[:, self._prefix_tokens :]

    def _normed(self, tokens: Tensor) -> Tensor:
        name = self._architecture.final_norm
        if name is None:
            return tokens
        normed: Tensor = getattr(self.backbone, name)(tokens)
        return normed

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
    folder = _folder(place, spec.revision)
    if folder is not None:
        verify_weights(spec.name, folder)
    _check_size(spec, backbone.config, place)
    if backbone.config.model_type == "vit_mae":
        backbone.config.mask_ratio = 0.0
    from_hub = folder is not None and not Path(place).is_dir()
    revision = folder.name if folder is not None and from_hub else _weights_hash(folder)
    return TransformersEncoder(
        spec,
        backbone.eval(),
        processor,
        layer=layer,
        resolution=resolution,
        pretrained=True,
        revision=revision,
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


def build_backbone(config: dict[str, Any]) -> Any:
    """Return a vision tower with fresh weights on torch's default device.

    Args:
        config: `model_type` and the arguments of its configuration class, as in `configs.toml`.
    """
    import transformers

    kind = str(config["model_type"])
    architecture = ARCHITECTURES[kind]
    settings = transformers.AutoConfig.for_model(
        **config, **{k: v for k, v in architecture.options.items() if k.endswith("use_head")}
    )
    if kind == "vit_mae":
        settings.mask_ratio = 0.0
    arguments = {k: v for k, v in architecture.options.items() if not k.endswith("use_head")}
    return getattr(transformers, architecture.model_class)(settings, **arguments)


def _architecture(spec: EncoderSpec, model_type: str, place: str) -> Architecture:
    if model_type not in ARCHITECTURES:
        raise UnknownNameError(
            "vision architecture",
            model_type,
            ARCHITECTURES,
            f"(in {place}); `timm:NAME` or `open_clip:ARCH/PRETRAINED` may have it.",
        )
    expected = _FAMILY_TYPES.get(spec.family)
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


_FAMILY_TYPES = {
    "deit": {"deit", "vit"},  # the checkpoints without a distillation token are plain ViTs
    "clip": {"clip", "clip_vision_model"},
    "siglip": {"siglip", "siglip_vision_model"},
    "siglip2": {"siglip", "siglip_vision_model"},
    "aimv2": {"aimv2", "aimv2_vision_model"},
    "mae": {"vit_mae"},
    "dino": {"vit"},
    "dinov2": {"dinov2", "dinov2_with_registers"},
    "dinov3": {"dinov3_vit"},
    "beit": {"beit"},
    "data2vec": {"data2vec-vision"},
    "ijepa": {"ijepa"},
    "webssl": {"dinov2", "vit", "vit_mae"},
}


def _load_backbone(
    spec: EncoderSpec,
    place: str,
    architecture: Architecture,
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
