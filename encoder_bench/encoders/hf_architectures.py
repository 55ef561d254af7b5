"""Which class of transformers reads each architecture, and how its tokens are laid out.

An architecture that is not listed is an error, never a guess.
"""

import inspect
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from encoder_bench.base.errors import WeightsError


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


_plain = partial(Architecture, ignored_keys=_HEADS)

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
    "mae": {"vit_mae", "vit"},  # one class hides patches, the other is its encoder alone
    "dino": {"vit"},
    "dinov2": {"dinov2", "dinov2_with_registers"},
    "dinov3": {"dinov3_vit", "dinov3_convnext"},
    "beit": {"beit"},
    "data2vec": {"data2vec-vision"},
    "ijepa": {"ijepa"},
    "webssl": {"dinov2", "vit", "vit_mae"},
}
"""Which model types a family of the catalogue may have; any, for a family that is not here."""


REMOTE = _plain("AutoModel", 0, other_sizes="never")
"""A repository's own class, as `--trust-remote-code` allows; see `remote_architecture`."""
_NEEDED = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")


def tower_settings(architecture: Architecture, config: Any) -> tuple[Any, dict[str, Any]]:
    """Return the configuration of a vision tower without heads, and its class's own arguments.

    What the class does not take as an argument is set in the configuration, which may be inside a
    larger model's. Its `architectures` says with which heads it was saved.
    """
    import transformers

    saved_as = getattr(config, "architectures", None) or ()
    masked = any("MaskedImageModeling" in str(name) for name in saved_as)
    options = architecture.options | (architecture.masked_options if masked else {})
    model_class = getattr(transformers, architecture.model_class)
    if not isinstance(config, model_class.config_class):
        config = config.vision_config
    taken = inspect.signature(model_class.__init__).parameters
    for name in [name for name in options if name not in taken]:
        setattr(config, name, options.pop(name))
    return config, options


def build_backbone(config: Any) -> Any:
    """Return a vision tower with transformers' own initialisation, on torch's default device.

    It takes a configuration, or `model_type` and its arguments as in `configs.toml`.
    """
    import transformers

    settings = transformers.AutoConfig.for_model(**config) if isinstance(config, dict) else config
    architecture = ARCHITECTURES[settings.model_type]
    settings, options = tower_settings(architecture, settings)
    if settings.model_type == "vit_mae":
        settings.mask_ratio = 0.0
    return getattr(transformers, architecture.model_class)(settings, **options)


def remote_architecture(
    name: str, place: str, backbone: Any, size: tuple[int, int], layer: tuple[int, ...]
) -> Architecture:
    """Run a repository's own model on a blank image and return how its tokens are laid out.

    Patch tokens are the last h * w of `last_hidden_state`, on the grid that image size and patch
    give; class and register tokens stand before them. `size` is (H, W), pixels of its image
    processor. Blocks that are asked for, the last excepted, need `hidden_states`.

    Raises:
        WeightsError: the configuration or the output is not that of a plain vision transformer.
    """
    import torch

    problem = f"encoder {name}: {place}: its own model class cannot be used as an encoder: "
    config = backbone.config
    missing = [key for key in _NEEDED if not isinstance(getattr(config, key, None), int)]
    if missing:
        raise WeightsError(f"{problem}its configuration gives no whole number {missing[0]}")
    patches = (size[0] // config.patch_size) * (size[1] // config.patch_size)
    only_last = set(layer) <= {-1, config.num_hidden_layers - 1}
    deep = {} if only_last else {"output_hidden_states": True}
    first = next(backbone.parameters())
    try:
        with torch.no_grad():
            output = backbone(pixel_values=first.new_zeros(1, 3, *size), **deep)
    except Exception as error:  # foreign code may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{problem}its forward pass fails: {reason}") from error
    tokens = getattr(output, "last_hidden_state", None)
    if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3:
        raise WeightsError(f"{problem}it gives no last_hidden_state of (images, tokens, width)")
    prefix = tokens.shape[1] - patches
    if prefix < 0 or tokens.shape[2] != config.hidden_size:
        raise WeightsError(
            f"{problem}{tokens.shape[1]} tokens of width {tokens.shape[2]} for {size[0]} x "
            f"{size[1]} pixels; expected at least {patches} patches of width {config.hidden_size}"
        )
    if deep and len(getattr(output, "hidden_states", None) or ()) != config.num_hidden_layers + 1:
        raise WeightsError(f"{problem}it gives no hidden_states of each block, so no --layer")
    registers = int(getattr(config, "num_register_tokens", 0) or 0)
    return replace(REMOTE, prefix_tokens=prefix - registers)
