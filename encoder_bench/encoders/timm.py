"""timm's checkpoints, read whole by name, address or from disk, and their patch tokens."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoder_bench.base.errors import UnknownNameError, WeightsError
from encoder_bench.encoders.catalog import EncoderSpec
from encoder_bench.encoders.encoder import Encoder, LoadOptions, TokensAndGrid, flat_map
from encoder_bench.encoders.loading import (
    NoRandomFill,
    explained,
    notes_on_differences,
    strict_loading,
    token_shape,
)
from encoder_bench.encoders.weights import external_checkpoint, fetch_file, find_file, read_tensors

_CHUNKED = re.compile(r"^blocks\.\d+\.(?=\d+\.)")
_HEADS = (
    "head.", "head_dist.", "fc.", "classifier.", "fc_norm.", "attn_pool.", "head_drop.",
    "masked_embed", "mask_token", "lm_head.", "decoder", "dist_token_head.",
)  # fmt: skip
_NEEDS_QUICK_GELU = {"vit_base_patch16_clip_224.dfn2b": "open_clip:ViT-B-16-quickgelu/dfn2b"}
_FACTS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
"""What of a folder's `config.json` decides the pixels."""


def timm_name(spec: EncoderSpec) -> tuple[str, str | None]:
    """Split `NAME@PLACE` into timm's name and where else its weights are.

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


def build_timm(spec: EncoderSpec, resolution: int | None = None) -> Any:
    """Return timm's model without a classifier or weights, on torch's default device.

    The spec's `architecture` and `preprocessing` override what timm records of the name, and so
    does the resolution, in pixels of a side.
    """
    import timm

    name, _ = timm_name(spec)
    facts = timm.get_pretrained_cfg(name)
    fixed = facts is None or facts.fixed_input_size  # others take any
    size = {"img_size": resolution} if resolution and fixed else {}
    return timm.create_model(
        name,
        num_classes=0,
        pretrained_cfg_overlay=dict(spec.preprocessing),
        **size,
        **spec.architecture,
    )


def load_timm(spec: EncoderSpec, weights: Path | None, options: LoadOptions) -> TimmEncoder:
    """Load a timm model from the Hub, an address, or a checkpoint or folder on disk.

    Raises:
        UnknownNameError: timm has no such model.
        WeightsError: unreachable, damaged, or not whole.
    """
    name, place = timm_name(spec)
    own, notes = _of_folder(spec, weights)
    side = options.resolution or (own.preprocessing.get("input_size") or (0, 0))[1] or None
    if options.random_weights:
        backbone, revision = build_timm(own, side), None
    else:
        file, revision = _find(spec, name, place, weights)
        with NoRandomFill():
            backbone = build_timm(own, side)
        resized = _read(spec.name, file, backbone, name)
        notes += () if options.resolution else resized
    encoder = TimmEncoder(own, backbone.to(options.dtype).eval(), options)
    encoder.weights_revision = revision
    encoder.notes = notes
    return encoder


def _of_folder(spec: EncoderSpec, weights: Path | None) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Return a spec with a folder's own `config.json`, and a note on where it differs."""
    import timm

    if weights is None:
        return spec, ()
    file = (weights if weights.is_dir() else weights.parent) / "config.json"
    if not file.is_file():
        return spec, ()
    with explained(spec.name, str(file)):
        config = json.loads(file.read_text(encoding="utf-8"))
    if "architecture" not in config:
        return spec, ()
    base = timm_name(spec)[0].partition(".")[0]
    if (other := str(config["architecture"])) != base:
        hint = f"; load it as timm:{other}" if timm.is_model(other) else ""
        raise WeightsError(f"encoder {spec.name}: {file} is of {other!r}, not {base}{hint}")
    facts = config.get("pretrained_cfg", config)
    stated = {key: facts[key] for key in _FACTS if facts.get(key) is not None}
    record = timm.get_pretrained_cfg(timm_name(spec)[0])
    known = {key: getattr(record, key, None) for key in _FACTS} | dict(spec.preprocessing)
    differing = [key for key in stated if _plain(stated[key]) != _plain(known[key])]
    arguments = {k: v for k, v in (config.get("model_args") or {}).items() if k != "img_size"}
    followed = replace(
        spec,
        architecture={**spec.architecture, **arguments},
        preprocessing={**spec.preprocessing, **stated},
    )
    return followed, notes_on_differences(spec, file, differing)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _find(
    spec: EncoderSpec, name: str, place: str | None, weights: Path | None
) -> tuple[Path, str]:
    """Return the verified file with the weights, and which revision it is."""
    import timm

    if place is not None and place.startswith("https://"):
        return external_checkpoint(spec, place, weights)
    if weights is not None:
        return find_file(spec, weights)
    facts = timm.get_pretrained_cfg(name)
    repository = place or (facts.hf_hub_id if facts is not None else None)
    if not repository:
        raise WeightsError(
            f"encoder {spec.name}: timm has no weights of {name} on the Hub; pass --weights PATH, "
            "or choose a tag of timm.list_pretrained()"
        )
    stated = getattr(facts, "hf_hub_filename", None)
    first = () if not stated else (str(Path(stated).with_suffix(".safetensors")), str(stated))
    names = ("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors")
    return fetch_file(spec, repository, (*first, *names, "pytorch_model.bin"))


def _read(name: str, file: Path, backbone: Any, model: str) -> tuple[str, ...]:
    """Read every parameter of a backbone from a checkpoint, in timm's names or its authors'.

    Returns:
        A note where its position embeddings are of another size and are interpolated.
    """
    theirs: dict[str, Tensor] = {}
    if file.suffix.lower() == ".npz":  # JAX weights, which timm copies array by array
        for parameter in backbone.parameters():
            parameter.data.fill_(torch.nan)
        backbone.load_pretrained(str(file))
        unread = {k for k, v in backbone.named_parameters() if v.isnan().any()}
        tensors = {k: v for k, v in backbone.state_dict().items() if k not in unread}
    else:
        theirs = _whole_blocks(read_tensors(name, file), backbone)
        counts = [_positions(each) for each in (theirs, backbone.state_dict())]
        tensors = theirs
    try:
        if theirs:
            tensors = state_filter(model)(theirs, backbone)
        strict_loading(name, str(file), backbone, tensors, ignored_keys=_HEADS)
    except (WeightsError, RuntimeError) as error:
        known = isinstance(error, WeightsError)
        found = str(error) if known else f"encoder {name}: {file} does not fit: {error}"
        raise WeightsError(
            f"{found}. Where it was trained with arguments that are not timm's own (global_pool, "
            "init_values...), a config.json beside it names them (docs/encoders.md)"
        ) from error
    prefix = getattr(backbone, "num_prefix_tokens", 0)
    if not theirs or 0 in counts or abs(counts[0] - counts[1]) <= prefix:
        return ()
    return (
        f"encoder {name}: the position embeddings in {file.name} are for {counts[0]:,} tokens, "
        f"those here for {counts[1]:,}, and are interpolated; --resolution gives it the size that "
        "it was trained at",
    )


def _positions(tensors: Mapping[str, Tensor]) -> int:
    """Return how many tokens have position embeddings; 0 where they are not in one sequence."""
    found = tensors.get("pos_embed")
    return found.shape[1] if found is not None and found.ndim == 3 else 0


def _whole_blocks(tensors: dict[str, Tensor], backbone: Any) -> dict[str, Tensor]:
    """Return DINOv2's training checkpoints without the chunks that its blocks are split into.

    `blocks.1.10.` is block 10 there; hierarchical models have stages of that name.
    """
    if any(_CHUNKED.match(name) for name in backbone.state_dict()):
        return tensors
    return {_CHUNKED.sub("blocks.", name): tensor for name, tensor in tensors.items()}


def state_filter(name: str) -> Callable[[dict[str, Tensor], Any], dict[str, Tensor]]:
    """Return the function by which timm renames and resizes a checkpoint for an architecture."""
    import timm

    base = name.partition(".")[0]
    module = sys.modules[timm.model_entrypoint(base).__module__]
    for found in ("checkpoint_filter_fn", "_filter_fn"):
        if hasattr(module, found):
            function = getattr(module, found)
            break
    else:
        return lambda tensors, _: tensors
    family = module.__name__.rsplit(".", 1)[-1]
    options: dict[str, Any] = {}
    if family == "deit":
        options = {"adapt_layer_scale": True}
    elif family == "vision_transformer" and ("flexi" in base or "radio" in base):
        options = {"interpolation": "bilinear", "antialias": False}
    if options and "radio" in base:
        options["align_corners"] = any(part in base for part in module._RADIO_ALIGN_CORNERS)
    return partial(function, **options) if options else function


class TimmEncoder(Encoder):
    """A timm backbone without its head; hierarchical ones give their last stage as tokens."""

    def __init__(self, spec: EncoderSpec, backbone: Any, options: LoadOptions) -> None:
        """Wrap a backbone; its heads, which no patch token depends on, are dropped.

        Raises:
            WeightsError: it has no such layer, or no layers to choose from.
        """
        import timm

        super().__init__()
        config = timm.data.resolve_model_data_config(backbone)
        _drop_heads(backbone)
        self.backbone = backbone
        if options.resolution:
            config["input_size"] = (3, options.resolution, options.resolution)
        self._data_config = config
        self.to_pixels = timm.data.create_transform(**config, is_training=False)
        self.resolution = (int(config["input_size"][1]), int(config["input_size"][2]))
        self._set_layer(spec, options.layer, _plain_blocks(backbone))
        width, self.grid = token_shape(backbone, self._tokens, self.resolution)
        self._set_shape(
            spec,
            width=width // len(self.layer),
            patch=self.resolution[0] // self.grid[0],
            prefix_tokens=int(getattr(backbone, "num_prefix_tokens", 0) or 0),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, N, D)` patch tokens; see `Encoder.forward`.

        The last layer is `forward_features`, with the final norm; earlier layers are un-normed.
        """
        return self._tokens(pixels.to(self.dtype))[0]

    def _tokens(self, pixels: Tensor) -> TokensAndGrid:
        wanted = set(self._wanted())
        inner = sorted(wanted - {self._last})
        if inner:
            final, maps = self.backbone.forward_intermediates(
                pixels, indices=inner, output_fmt="NCHW", stop_early=self._last not in wanted
            )
        else:
            final, maps = self.backbone.forward_features(pixels), []
        outputs = dict(zip(inner, map(flat_map, maps), strict=True))
        if self._last in wanted:
            outputs[self._last] = _flat(final, self.backbone)
        _, grid = outputs[max(outputs)]
        return self._joined({index: tokens for index, (tokens, _) in outputs.items()}), grid

    @property
    def transform_description(self) -> str:
        """The data configuration that timm resolved."""
        settings = {  # a checkpoint's JSON has lists where the library has tuples
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self._data_config.items()
        }
        return ", ".join(f"{key}={value}" for key, value in sorted(settings.items()))


def _drop_heads(backbone: Any) -> None:
    """Leave out classifier, attention pooling and the norm of the pooled vector.

    They see pooled tokens only: they would count as parameters and never receive a gradient.
    """
    if getattr(backbone, "attn_pool", None) is not None:
        backbone.attn_pool = None
        backbone.global_pool = ""
    for name in ("fc_norm", "head", "head_dist", "fc", "classifier"):
        if isinstance(getattr(backbone, name, None), nn.Module):
            setattr(backbone, name, nn.Identity().eval())


def _plain_blocks(backbone: Any) -> int | None:
    """Return how many blocks a plain stack has; None for hierarchical models."""
    blocks = getattr(backbone, "blocks", None)
    if len({(part["num_chs"], part["reduction"]) for part in _feature_info(backbone)}) > 1:
        return None
    if blocks is None or not hasattr(backbone, "forward_intermediates"):
        return None
    if any(isinstance(block, nn.Sequential | nn.ModuleList) for block in blocks):
        return None
    return len(blocks)


def _feature_info(backbone: Any) -> list[dict[str, Any]]:
    """Return what timm says of each intermediate map."""
    found = getattr(backbone, "feature_info", None) or []
    return list(getattr(found, "info", found))


def _flat(features: Tensor, backbone: Any) -> TokensAndGrid:
    """Return row-major `(B, N, D)` tokens and their grid from what `forward_features` gives.

    ViTs give `(B, P + N, D)` with P prefix tokens; others a map, `(B, D, h, w)` or `(B, h, w, D)`.
    """
    if not isinstance(features, Tensor):
        raise WeightsError(
            f"{type(backbone).__name__} gives several feature maps, not patch tokens on one grid; "
            "use another encoder"
        )
    if features.ndim == 3:
        tokens = features[:, int(getattr(backbone, "num_prefix_tokens", 0)) :]
        grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
        count = tokens.shape[1]
        if grid is None or grid[0] * grid[1] != count:
            grid = (round(count**0.5),) * 2
        if grid[0] * grid[1] != count:
            raise WeightsError(f"{count} tokens do not lie on a square grid; use another encoder")
        if count == 1 and hasattr(backbone, "cls_token"):  # PiT's
            raise WeightsError(
                f"{type(backbone).__name__} gives its class token alone, no patch tokens; use "
                "another encoder"
            )
        return tokens, (int(grid[0]), int(grid[1]))
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        features = features.permute(0, 3, 1, 2)
    return flat_map(features)
