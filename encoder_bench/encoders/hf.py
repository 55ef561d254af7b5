"""Checkpoints in transformers' layout: read whole from the Hub or a folder, and their tokens."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from encoder_bench.base.errors import UnknownNameError, WeightsError
from encoder_bench.base.hashing import hash_json, known_hash
from encoder_bench.encoders.catalog import EncoderSpec
from encoder_bench.encoders.encoder import Encoder, LoadOptions, TokensAndGrid, flat_map
from encoder_bench.encoders.hf_architectures import (
    ARCHITECTURES,
    FAMILY_TYPES,
    REMOTE,
    Architecture,
    build_backbone,
    remote_architecture,
    tower_settings,
)
from encoder_bench.encoders.loading import (
    check_names,
    quiet_loading,
    require_here_or_reachable,
    token_shape,
)
from encoder_bench.encoders.weights import verify_weights

_DESCRIBED = (
    "do_center_crop", "crop_size", "do_resize", "size", "resample", "image_mean", "image_std",
    "rescale_factor", "crop_pct",
)  # fmt: skip
_USUALLY_ON = ("do_normalize", "do_rescale")
_COMPUTES = re.compile(r"act|eps|heads|rope|theta|window|scal|norm|bias|pool|drop_path|mask")
"""Keys of a configuration that change features and no weight's shape."""
_OF_NO_FEATURE = re.compile(r"dropout|^_|initializer|loss|label|activation_checkpoint|abstract")


def load_hf(spec: EncoderSpec, place: str, options: LoadOptions) -> HfEncoder:
    """Load a vision tower from a Hub repository or a folder in transformers' layout.

    With `trust_remote_code` a repository's own model class is used where its architecture is not
    known here.

    Raises:
        WeightsError: unreachable, damaged, of an architecture that is not known, of another
            family or size than the name says, or with parameters left at random values.
    """
    from transformers import AutoConfig, AutoImageProcessor

    require_here_or_reachable(spec, place)
    trusted = options.trust_remote_code
    arguments = {"revision": spec.revision, "trust_remote_code": trusted}
    config = AutoConfig.from_pretrained(place, **arguments)
    architecture = _architecture(spec, config, place, own_class=trusted)
    processor = AutoImageProcessor.from_pretrained(place, **arguments)
    if options.random_weights:
        backbone = build_backbone(config).to(options.dtype)
    else:
        backbone = _read(spec, place, architecture, config, options.dtype, arguments)
    folder, revision = _files(place, spec.revision)
    if folder is not None and not options.random_weights:
        verify_weights(spec.name, folder)
    _check_size(spec, backbone.config, place)
    backbone.eval()
    if backbone.config.model_type == "vit_mae":
        backbone.config.mask_ratio = 0.0
    if architecture is REMOTE:
        size = output_size(processor)
        architecture = remote_architecture(spec.name, place, backbone, size, options.layer)
    encoder = HfEncoder(spec, backbone, processor, options, architecture)
    encoder.weights_revision = revision
    encoder.remote_code = trusted and bool(getattr(config, "auto_map", None))
    return encoder


def _files(place: str, revision: str | None) -> tuple[Path | None, str | None]:
    """Return where the files are, and the Hub's commit or the sha256 of a folder's one file."""
    from huggingface_hub import try_to_load_from_cache

    if Path(place).is_dir():
        file = Path(place) / "model.safetensors"
        return Path(place), f"sha256:{known_hash(file)}" if file.is_file() else None
    configuration = try_to_load_from_cache(place, "config.json", revision=revision)
    if not isinstance(configuration, str):
        return None, None
    return Path(configuration).parent, Path(configuration).parent.name  # named by its commit


def _architecture(spec: EncoderSpec, config: Any, place: str, *, own_class: bool) -> Architecture:
    model_type = str(config.model_type)
    expected = FAMILY_TYPES.get(spec.family)
    if model_type not in ARCHITECTURES:
        maps = getattr(config, "auto_map", None) or {}
        if own_class and "AutoModel" in maps and expected is None:
            return REMOTE
        raise UnknownNameError(
            "vision architecture",
            model_type,
            ARCHITECTURES,
            f"(in {place}); `timm:NAME` or `open_clip:ARCH/PRETRAINED` may have it.",
        )
    if expected and model_type not in expected:
        raise WeightsError(
            f"encoder {spec.name}: {place} holds a '{model_type}', not a {spec.family}; "
            "the weights are not those that the name stands for"
        )
    return ARCHITECTURES[model_type]


def _check_size(spec: EncoderSpec, config: Any, place: str) -> None:
    if getattr(config, "num_hidden_layers", None) is None or spec.depth is None:
        return
    found = (int(config.hidden_size), int(config.num_hidden_layers))
    stated = (spec.width or found[0], spec.depth)
    if found != stated:
        raise WeightsError(
            f"encoder {spec.name}: {place} is {found[0]} wide with {found[1]} blocks, the name "
            f"stands for {stated[0]} and {stated[1]}; load it as dir:PATH or hf:REPO instead"
        )


def _read(
    spec: EncoderSpec,
    place: str,
    architecture: Architecture,
    config: Any,
    dtype: torch.dtype,
    arguments: dict[str, Any],
) -> Any:
    """Return the tower with every parameter read from the checkpoint, which holds no other."""
    import transformers

    model_class = getattr(transformers, architecture.model_class)
    options: dict[str, Any] = {}
    if architecture is not REMOTE:  # read already, and not again
        config, options = tower_settings(architecture, config)
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
    prefix = f"{backbone.base_model_prefix}."
    missing = [str(n) for key in ("missing_keys", "mismatched_keys") for n in report.get(key, ())]
    unexpected = [
        str(name)
        for name in report.get("unexpected_keys", ())
        if not str(name).removeprefix(prefix).startswith(architecture.ignored_keys)
    ]
    check_names(spec.name, place, missing, unexpected, ())
    return backbone


class HfEncoder(Encoder):
    """A vision tower of transformers with its own image processor."""

    def __init__(
        self,
        spec: EncoderSpec,
        backbone: Any,
        processor: Any,
        options: LoadOptions,
        architecture: Architecture | None = None,
    ) -> None:
        """Wrap a loaded tower; `architecture` is by default what is known of its model type.

        Raises:
            WeightsError: a layer or a resolution that this tower does not have.
        """
        super().__init__()
        config = backbone.config
        self.backbone = backbone
        self._architecture = architecture or ARCHITECTURES[config.model_type]
        self.processor = resized(processor, options.resolution) if options.resolution else processor
        self.resolution = output_size(self.processor)
        registers = int(getattr(config, "num_register_tokens", 0) or 0)
        self._prefix_tokens = self._architecture.prefix_tokens + registers
        trained = config.image_size
        trained = (trained, trained) if isinstance(trained, int) else tuple(trained)
        self._resized = trained != self.resolution
        if self._resized and self._architecture.other_sizes == "never":
            raise WeightsError(
                f"encoder {spec.name}: this architecture takes {config.image_size} pixels only, "
                f"not {self.resolution[0]}; leave --resolution out, or use its timm source"
            )
        depth = None if self._architecture.hierarchical else int(config.num_hidden_layers)
        self._set_layer(spec, options.layer, depth)
        if depth is None:
            width, self.grid = token_shape(backbone, self._last_stage, self.resolution)
            patch = self.resolution[0] // self.grid[0]
        else:
            width, patch = self._plain_grid(spec.name)
        self._set_shape(spec, width=width, patch=patch, prefix_tokens=self._prefix_tokens)
        if not options.resolution:
            self.notes = self._size_notes(spec)

    def _plain_grid(self, name: str) -> tuple[int, int]:
        """Set the grid of a plain ViT; return width and patch."""
        patch = int(self.backbone.config.patch_size)
        # SigLIP's SO400M was trained at 384 px with a patch of 14: its own size may leave a rim.
        if self._resized and (self.resolution[0] % patch or self.resolution[1] % patch):
            raise WeightsError(
                f"encoder {name}: {self.resolution[0]} pixels are not a multiple of its "
                f"patch of {patch}; choose another --resolution"
            )
        self.grid = (self.resolution[0] // patch, self.resolution[1] // patch)
        return int(self.backbone.config.hidden_size), patch

    def _last_stage(self, pixels: Tensor, **arguments: Any) -> TokensAndGrid:
        """Return the tokens of a hierarchical model, of which some give a map."""
        features = self.backbone(pixel_values=pixels, **arguments).last_hidden_state
        if features.ndim == 4:
            return flat_map(features)
        tokens = features[:, self._prefix_tokens :]
        count, ratio = tokens.shape[1], pixels.shape[2] / pixels.shape[3]
        # stages round sizes that their strides do not divide up or down, so the count decides
        factors = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
        return tokens, min(factors, key=lambda grid: abs(math.log(grid[0] / grid[1] / ratio)))

    def _size_notes(self, spec: EncoderSpec) -> tuple[str, ...]:
        """Return where the checkpoint's sizes disagree with its name or with each other."""
        side, trained = self.resolution[0], self.backbone.config.image_size
        if spec.resolution not in (None, side):
            return (
                f"encoder {spec.name}: the name stands for {spec.resolution} px, the checkpoint's "
                f"image processor gives {side} px; the checkpoint is followed",
            )
        if spec.resolution is None and self._resized:
            return (
                f"encoder {spec.name}: its image processor gives {side} px, its position "
                f"embeddings are for {trained} px and are interpolated",
            )
        return ()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, N, D)` patch tokens; see `Encoder.forward`.

        The last layer is the library's `last_hidden_state` under the tower's final norm (CLIP's
        `last_hidden_state` comes before it, as in no other source of the same weights); an earlier
        layer is the block's output as it is, as LLaVA takes it.
        """
        arguments: dict[str, Any] = {}
        if self._resized and self._architecture.other_sizes == "argument":
            arguments["interpolate_pos_encoding"] = True
        if self.backbone.config.model_type == "vit_mae":
            # Noise in rising order keeps every patch in its place; the mask ratio is 0.
            order = torch.arange(self.num_tokens, device=pixels.device, dtype=torch.float32)
            arguments["noise"] = order.expand(len(pixels), -1)
        pixels = pixels.to(self.dtype)
        if self.blocks is None:
            return self._last_stage(pixels, **arguments)[0]
        deep = set(self._wanted()) != {self._last}
        output = self.backbone(pixel_values=pixels, **arguments, output_hidden_states=deep)
        outputs = dict(enumerate(output.hidden_states[1:])) if deep else {}
        final, norm = output.last_hidden_state, self._architecture.final_norm
        outputs[self._last] = getattr(self.backbone, norm)(final) if norm else final
        return self._joined(outputs)[:, self._prefix_tokens :]

    def to_pixels(self, image: Image) -> Tensor:
        """Return `(3, H, W)` pixels as the checkpoint's own processor makes them."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    @property
    def transform_description(self) -> str:
        """What decides the pixels and, of a checkpoint that can be edited, how they are read."""
        settings = self.processor.to_dict()
        parts = [f"{k}={settings[k]}" for k in _DESCRIBED if settings.get(k) is not None]
        parts += [f"{k}=False" for k in _USUALLY_ON if settings.get(k) is False]
        if self.spec.source != "bundled":
            known = computing_settings(self.backbone.config)
            known["processor"] = type(self.processor).__name__.removesuffix("Fast")
            parts.append(f"configuration {hash_json(known)[:12]}")
        return ", ".join(parts)


def computing_settings(config: Any) -> dict[str, Any]:
    """Return the keys of a configuration that decide what the same weights compute."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if _COMPUTES.search(key) and not _OF_NO_FEATURE.search(key)
    }


def output_size(processor: Any) -> tuple[int, int]:
    """Return (H, W) after an image processor's resize and crop.

    Raises:
        WeightsError: the processor keeps each image's own size.
    """
    settings = processor.to_dict()
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if isinstance(size, int):
        return size, size
    size = dict(size or {})
    if _is_convnext(processor):  # a square, by a crop of `crop_pct` below 384 px
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    if "height" in size and "width" in size and size["height"]:
        return int(size["height"]), int(size["width"])
    raise WeightsError(f"its image processor gives no fixed size ({size}); pass --resolution")


def resized(processor: Any, resolution: int) -> Any:
    """Return an image processor with another output size; resize and crop keep their ratio."""
    settings = processor.to_dict()
    if _is_convnext(processor):
        return type(processor).from_dict(settings | {"size": {"shortest_edge": resolution}})
    square = {"height": resolution, "width": resolution}
    changes: dict[str, Any] = {"size": square}
    if settings.get("do_center_crop") and settings.get("crop_size"):
        changes["crop_size"] = square
        edge = dict(settings["size"]).get("shortest_edge")
        crop = dict(settings["crop_size"])["height"]
        if edge:
            changes["size"] = {"shortest_edge": round(edge * resolution / crop)}
    return type(processor).from_dict(settings | changes)


def _is_convnext(processor: Any) -> bool:
    return type(processor).__name__.startswith("ConvNext")
