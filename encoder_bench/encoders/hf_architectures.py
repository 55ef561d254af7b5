"""Which class of transformers reads each architecture, and how its tokens are laid out.

What belongs here: the table of architectures and what follows from it. An architecture that is not
listed is an error, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a model type is loaded and read.

    Attributes:
        model_class: transformers' class of the vision tower.
        prefix_tokens: class and distillation tokens before the patch tokens; registers, whose
            number the configuration gives, come on top.
        options: arguments that leave out a pooling head, which no patch token depends on.
        masked_options: arguments besides for a checkpoint that was saved with its head for masked
            images, where that head holds the final norm.
        ignored_keys: prefixes of parameter names (heads, other towers) that a checkpoint may
            also hold.
        renamed: patterns of parameter names -> what they are called in `model_class`, for towers
            that lie in a larger model.
        other_sizes: how another resolution is had: `argument` asks for interpolated position
            embeddings, `always` takes any, `never` none.
        final_norm: the module that norms the last block's tokens where `last_hidden_state` comes
            before it; every source gives its last layer normed.
        hierarchical: the last stage's map is the tokens, and blocks cannot be chosen.
    """

    model_class: str
    prefix_tokens: int
    options: dict[str, Any] = field(default_factory=dict)
    masked_options: dict[str, Any] = field(default_factory=dict)
    ignored_keys: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    other_sizes: Literal["argument", "always", "never"] = "argument"
    final_norm: str | None = None
    hierarchical: bool = False


_HEADS = (
    "pooler.", "head.", "classifier.", "cls_classifier.", "distillation_classifier.", "decoder.",
    "lm_head.", "embeddings.mask_token",
)  # fmt: skip
_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
_NO_POOLER = {"add_pooling_layer": False}
_MASKED_NORM = {"use_mean_pooling": False}
_TOWER = {r"^vision_model\.": ""}


def plain_architecture(model_class: str, prefix_tokens: int, **more: Any) -> Architecture:
    """Return an architecture whose checkpoints may hold the usual heads besides."""
    return Architecture(model_class, prefix_tokens, ignored_keys=_HEADS, **more)


_plain = plain_architecture


_CLIP = Architecture("CLIPVisionModel", 1, ignored_keys=_TEXT, final_norm="post_layernorm")
_SIGLIP = Architecture(
    "SiglipVisionModel", 0, {"vision_use_head": False}, ignored_keys=_HEADS + _TEXT
)
_AIMV2 = Architecture(
    "Aimv2VisionModel", 0, {"use_head": False}, ignored_keys=_HEADS + _TEXT, renamed=_TOWER,
    other_sizes="never",
)  # fmt: skip

ARCHITECTURES: dict[str, Architecture] = {
    "deit": _plain("DeiTModel", 2, options=_NO_POOLER),
    "vit": _plain("ViTModel", 1, options=_NO_POOLER),
    "vit_mae": _plain("ViTMAEModel", 1),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": _plain("Dinov2Model", 1, other_sizes="always"),
    "dinov2_with_registers": _plain("Dinov2WithRegistersModel", 1, other_sizes="always"),
    "dinov3_vit": _plain("DINOv3ViTModel", 1, other_sizes="always"),
    "dinov3_convnext": _plain("DINOv3ConvNextModel", 1, other_sizes="always", hierarchical=True),
    "ijepa": _plain("IJepaModel", 0, options=_NO_POOLER),
    "beit": _plain("BeitModel", 1, options=_NO_POOLER, masked_options=_MASKED_NORM),
    "data2vec-vision": _plain("Data2VecVisionModel", 1, options=_NO_POOLER),
    "vit_msn": _plain("ViTMSNModel", 1),
    "aimv2": _AIMV2,
    "aimv2_vision_model": _AIMV2,
    "swin": _plain("SwinModel", 0, options=_NO_POOLER, hierarchical=True),
    "swinv2": _plain("Swinv2Model", 0, options=_NO_POOLER, hierarchical=True),
    "convnext": _plain("ConvNextModel", 0, other_sizes="always", hierarchical=True),
    "convnextv2": _plain("ConvNextV2Model", 0, other_sizes="always", hierarchical=True),
}

FAMILY_TYPES = {
    "deit": {"deit", "vit"},  # the checkpoints without a distillation token are plain ViTs
    "clip": {"clip", "clip_vision_model"},
    "siglip": {"siglip", "siglip_vision_model"},
    "siglip2": {"siglip", "siglip_vision_model"},
    "aimv2": {"aimv2", "aimv2_vision_model"},
    "mae": {"vit_mae"},
    "dino": {"vit"},
    "dinov2": {"dinov2", "dinov2_with_registers"},
    "dinov3": {"dinov3_vit", "dinov3_convnext"},
    "beit": {"beit"},
    "data2vec": {"data2vec-vision"},
    "ijepa": {"ijepa"},
    "webssl": {"dinov2", "vit", "vit_mae"},
}
"""Which model types a family of the catalogue may have; any, for a family that is not here."""


def loading_options(architecture: Architecture, config: Any) -> dict[str, Any]:
    """Return the arguments with which a checkpoint's vision tower is built.

    Args:
        architecture: of the checkpoint.
        config: its configuration; `architectures` says with which heads it was saved.
    """
    saved_as = getattr(config, "architectures", None) or ()
    masked = any("MaskedImageModeling" in str(name) for name in saved_as)
    return architecture.options | (architecture.masked_options if masked else {})


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
