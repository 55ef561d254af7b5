"""open_clip's checkpoints, `ARCH/PRETRAINED` by tag or from disk, and their patch tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from encoder_bench.base.errors import UnknownNameError, WeightsError
from encoder_bench.encoders.catalog import EncoderSpec
from encoder_bench.encoders.encoder import Encoder, LoadOptions, TokensAndGrid, flat_map
from encoder_bench.encoders.loading import (
    NoRandomFill,
    explained,
    notes_on_differences,
    quiet_building,
    strict_loading,
    token_shape,
)
from encoder_bench.encoders.weights import fetch_file, find_file, read_tensors

_FILES = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin")
_PREPROCESSING = {
    "mean": "image_mean",
    "std": "image_std",
    "interpolation": "image_interpolation",
    "resize_mode": "image_resize_mode",
}
_HEADS = ("proj", "head.", "trunk.head.", "trunk.attn_pool.", "trunk.fc_norm.")


def open_clip_name(spec: EncoderSpec, *, tagged: bool) -> tuple[str, dict[str, Any]]:
    """Return the architecture and what open_clip knows of the tag, of `ARCH/PRETRAINED`.

    `tagged` says that the tag must be one of open_clip's.

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
    return architecture, open_clip.get_pretrained_cfg(architecture, tag) or {}


def build_open_clip(
    spec: EncoderSpec,
    weights: Path | None = None,
    resolution: int | None = None,
    device: str = "cpu",
) -> tuple[Any, Any]:
    """Return open_clip's model without weights, and its evaluation transform.

    Activation and preprocessing are those of the tag; where a folder has its own
    `open_clip_config.json`, the folder's.
    """
    import open_clip

    architecture, facts = open_clip_name(spec, tagged=weights is None)
    options: dict[str, Any] = {}
    if _own_config(weights) is not None:
        architecture = f"local-dir:{weights}"
    else:
        options["force_quick_gelu"] = bool(facts.get("quick_gelu"))
        for key, option in _PREPROCESSING.items():
            if facts.get(key) is not None:
                options[option] = facts[key]
    with quiet_building():
        model, _, transform = open_clip.create_model_and_transforms(
            architecture,
            load_weights=False,
            pretrained_text=False,
            force_image_size=resolution,
            device=device,
            **options,
        )
    return model, transform


def _own_config(weights: Path | None) -> dict[str, Any] | None:
    file = None if weights is None else weights / "open_clip_config.json"
    if file is None or not file.is_file():
        return None
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def _folder_notes(spec: EncoderSpec, weights: Path | None) -> tuple[str, ...]:
    """Return where a folder's own configuration disagrees with the name."""
    import open_clip

    own = _own_config(weights)
    if own is None:
        return ()
    architecture, facts = open_clip_name(spec, tagged=False)
    named = open_clip.get_model_config(architecture) or {}
    quick = bool(facts.get("quick_gelu", named.get("quick_gelu")))
    model, pixels = own.get("model_cfg", {}), own.get("preprocess_cfg", {})
    other = ["quick_gelu"] if bool(model.get("quick_gelu")) != quick else []
    other += [k for k, v in model.get("vision_cfg", {}).items() if named["vision_cfg"].get(k) != v]
    other += [k for k in _PREPROCESSING if k in pixels and facts.get(k, pixels[k]) != pixels[k]]
    return notes_on_differences(spec, weights, other)


def load_open_clip(
    spec: EncoderSpec, weights: Path | None, options: LoadOptions
) -> OpenClipEncoder:
    """Load the vision tower of an open_clip model from the Hub, or a checkpoint on disk.

    Raises:
        UnknownNameError: open_clip has no such architecture or tag.
        WeightsError: unreachable, damaged, or no patch tokens.
    """
    revision, side = None, options.resolution
    if options.random_weights:
        model, transform = build_open_clip(spec, weights, side)
    else:
        model, transform, revision = read_open_clip(spec, weights, side, vision_only=True)
    encoder = OpenClipEncoder(spec, model.visual.to(options.dtype).eval(), transform, options)
    encoder.weights_revision = revision
    encoder.notes = _folder_notes(spec, weights)
    return encoder


def read_open_clip(
    spec: EncoderSpec,
    weights: Path | None = None,
    resolution: int | None = None,
    *,
    vision_only: bool,
) -> tuple[Any, Any, str]:
    """Return open_clip's model, read as `load_open_clip` does, its transform, and the revision."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed

    _, facts = open_clip_name(spec, tagged=weights is None)
    if weights is not None:
        file, revision = find_file(spec, weights)
    elif facts.get("hf_hub"):
        file, revision = fetch_file(spec, str(facts["hf_hub"]).rstrip("/"), _FILES)
    else:
        raise WeightsError(
            f"encoder {spec.name}: open_clip has no Hub repository for {spec.locator}; download "
            "its checkpoint and pass --weights FILE"
        )
    with explained(spec.name, str(file)):
        with NoRandomFill():
            model, transform = build_open_clip(spec, weights, resolution)
        state = convert_state_dict(model, read_tensors(spec.name, file))
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        resize_pos_embed(state, model)
        for key in ("logit_scale", "logit_bias"):  # a number, or a list of one
            if key in state and getattr(model, key, None) is not None:
                state[key] = state[key].reshape(getattr(model, key).shape)
    module, heads = (model.visual, _HEADS) if vision_only else (model, ())
    if vision_only:
        state = {k[7:]: v for k, v in state.items() if k.startswith("visual.")}
    strict_loading(spec.name, str(file), module, state, ignored_keys=heads)
    return model, transform, revision


class OpenClipEncoder(Encoder):
    """The vision tower of an open_clip model; its text tower is dropped."""

    def __init__(
        self, spec: EncoderSpec, backbone: Any, transform: Any, options: LoadOptions
    ) -> None:
        """Wrap a vision tower with its evaluation transform; its projection is dropped.

        Raises:
            WeightsError: the tower gives no intermediate tokens, or has no such layer.
        """
        super().__init__()
        trunk = getattr(backbone, "trunk", None)
        blocks = (
            backbone.transformer.resblocks
            if hasattr(backbone, "transformer")
            else getattr(trunk, "blocks", None)
        )
        if blocks is None or not hasattr(backbone, "forward_intermediates"):
            raise WeightsError(
                f"encoder {spec.name}: this open_clip tower gives no patch tokens by block; its "
                "weights may be in timm (timm:NAME)"
            )
        _drop_heads(backbone)
        self.backbone, self.to_pixels = backbone, transform
        size = backbone.image_size
        self.resolution = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self._set_layer(spec, options.layer, len(blocks))
        width, self.grid = token_shape(backbone, self._first_map, self.resolution)
        self._set_shape(
            spec,
            width=width,
            patch=self.resolution[0] // self.grid[0],
            prefix_tokens=1 if trunk is None else int(getattr(trunk, "num_prefix_tokens", 0) or 0),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, N, D)` patch tokens; layer -1 with the tower's final norm.

        One pass, which ends with the last block that is asked for.
        """
        outputs = self._outputs(pixels.to(self.dtype), sorted(set(self._wanted())), "NLC")
        if self._last in outputs:
            trunk = getattr(self.backbone, "trunk", None)
            norm = self.backbone.ln_post if trunk is None else trunk.norm
            outputs[self._last] = norm(outputs[self._last])
        return self._joined(outputs)

    def _outputs(self, pixels: Tensor, indices: list[int], layout: str) -> dict[int, Tensor]:
        """Return the un-normed patch tokens of some blocks, `NLC` or as maps, `NCHW`."""
        output = self.backbone.forward_intermediates(
            pixels, indices=indices, stop_early=True, intermediates_only=True, output_fmt=layout
        )
        return dict(zip(indices, output["image_intermediates"], strict=True))

    def _first_map(self, pixels: Tensor) -> TokensAndGrid:
        """Return the first block's patch tokens and their grid: all blocks have the same."""
        return flat_map(self._outputs(pixels, [0], "NCHW")[0])

    @property
    def transform_description(self) -> str:
        """The steps of the evaluation transform, functions among them by name, without address."""
        steps = re.sub(r"<function (\S+) at 0x\w+>", r"\1()", str(self.to_pixels))
        return " ".join(steps.split())


def _drop_heads(backbone: Any) -> None:
    """Leave out projection, attention pooling and a norm of pooled vectors.

    No patch token depends on them. CLIPA's and CoCa's towers norm what was pooled, not the tokens.
    """
    if isinstance(getattr(backbone, "proj", None), nn.Parameter):
        backbone.proj = None
    pooler = getattr(backbone, "attn_pool", None)
    if getattr(backbone, "final_ln_after_pool", False) or pooler is not None:
        backbone.ln_post = nn.Identity().eval()
        backbone.attn_pool = backbone.attn_pool_contrastive = None
    trunk = getattr(backbone, "trunk", None)
    if trunk is not None:
        backbone.head = nn.Identity().eval()
        if getattr(trunk, "attn_pool", None) is not None:
            trunk.attn_pool = None
            trunk.global_pool = ""
        for name in ("fc_norm", "head"):
            if isinstance(getattr(trunk, name, None), nn.Module):
                setattr(trunk, name, nn.Identity().eval())
