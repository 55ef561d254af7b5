"""The same weights written in each library's own format are one encoder: equal features."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.encoders.bundled import tiny_processor
from encoder_bench.encoders.catalog import CATALOG, parse_source, transformers_configs
from encoder_bench.encoders.encoder import LoadOptions
from encoder_bench.encoders.hf_architectures import build_backbone
from encoder_bench.encoders.registry import find_spec, load_encoder
from encoder_bench.encoders.timm import load_timm

RELATIVE_TOLERANCE = 1e-3
"""Largest difference of a feature, as a share of the features' standard deviation."""

VIT = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^cls_token", "embeddings.cls_token"),
    (r"^pos_embed", "embeddings.position_embeddings"),
    (r"^norm\.", "layernorm."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.qkv\.", ".attention.{}_proj."),
)
NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "vit": (
        *VIT,
        (r"^blocks\.", "layers."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
    ),
    "dinov2": (
        *VIT,
        (r"^blocks\.", "encoder.layer."),
        (r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1"),
    ),
    "clip_vision_model": (
        (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
        (r"^cls_token", "embeddings.class_embedding"),
        (r"^pos_embed", "embeddings.position_embedding.weight"),
        (r"^norm_pre\.", "pre_layrnorm."),
        (r"^norm\.", "post_layernorm."),
        (r"^blocks\.", "encoder.layers."),
        (r"\.attn\.proj\.", ".self_attn.out_proj."),
        (r"\.attn\.qkv\.", ".self_attn.{}_proj."),
        (r"\.norm(\d)\.", r".layer_norm\1."),
    ),
    "open_clip": (
        (r"^patch_embed\.proj\.", "conv1."),
        (r"^cls_token", "class_embedding"),
        (r"^pos_embed", "positional_embedding"),
        (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."),
        (r"^blocks\.", "transformer.resblocks."),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.norm(\d)\.", r".ln_\1."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    ),
}
NAMES["vit_mae"] = NAMES["vit"]
NAMES["ijepa"] = NAMES["vit"]
NAMES["dinov3_vit"] = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
    (r"^cls_token", "embeddings.cls_token"),
    (r"^reg_token", "embeddings.register_tokens"),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.qkv\.", ".attention.{}_proj."),
    (r"\.gamma_(\d)", r".layer_scale\1.lambda1"),
    (r"\.mlp\.fc1\.", ".mlp.up_proj."),
    (r"\.mlp\.fc2\.", ".mlp.down_proj."),
    (r"^blocks\.", "model.layer."),
)
NAMES["siglip_vision_model"] = NAMES["clip_vision_model"]


def renamed(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return timm's state dict under another library's names, queries, keys and values apart."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in NAMES[kind]:
            new = re.sub(pattern, replacement, new)
        if "{}" in new:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                out[new.format(letter)] = part
        else:
            out[new] = tensor
    return out


def timm_state(name: str, **architecture: Any) -> dict[str, Tensor]:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **architecture)
    with torch.no_grad():  # norms and biases off their initial ones and zeros
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return {
        key: value.contiguous()
        for key, value in model.state_dict().items()
        if not key.startswith("attn_pool")
    }


def write_timm(name: str, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Write random weights in timm's format; heads may be missing."""
    folder.mkdir()
    state = timm_state(name)
    save_file(state, folder / "model.safetensors")
    return folder, state


def write_transformers(repository: str, state: dict[str, Tensor], folder: Path, side: int) -> Path:
    return write_backbone(transformers_configs()[repository]["config"], state, folder, side)


def write_backbone(
    config: dict[str, Any], state: dict[str, Tensor], folder: Path, side: int
) -> Path:
    """Write timm's weights in transformers' format, as a configuration describes them."""
    backbone: Any = build_backbone(config)
    own = backbone.state_dict()
    wanted = renamed(state, config["model_type"])
    for name, tensor in wanted.items():
        own[name].copy_(tensor.reshape(own[name].shape))
    extra = set(own) - set(wanted)
    assert all("mask_token" in n or "position_ids" in n for n in extra), extra
    backbone.save_pretrained(folder)
    processor = tiny_processor(64)
    processor.size = {"height": side, "width": side}
    processor.save_pretrained(folder)
    return folder


def write_open_clip(name: str, state: dict[str, Tensor], folder: Path) -> Path:
    import open_clip

    model = open_clip.create_model(name, pretrained=None)
    own = model.state_dict()
    for key, tensor in renamed(state, "open_clip").items():
        target = own[f"visual.{key}"]
        target.copy_(tensor.reshape(target.shape))
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in own.items()}, folder / "open_clip_model.safetensors")
    return folder


def locator(name: str, form: str) -> str:
    return next(found for kind, found in map(parse_source, CATALOG[name].sources) if kind == form)


@torch.no_grad()
def relative_difference(name: str, folders: dict[str, Path], **options: Any) -> float:
    """Return the largest difference of two sources' features over their standard deviation."""
    first, second = (
        load_encoder(f"{name}@{form}", weights=folder, **options)
        for form, folder in folders.items()
    )
    assert (first.grid, first.resolution) == (second.grid, second.resolution)
    pixels = torch.randn(1, 3, *first.resolution, generator=torch.Generator().manual_seed(0))
    tokens, other = first(pixels), second(pixels)
    assert tokens.std() > 0.1
    return float((tokens - other).abs().max() / tokens.std())


def write_both(name: str, folder: Path) -> dict[str, Path]:
    """Write one set of weights for a name's timm and transformers sources."""
    timm_folder, state = write_timm(locator(name, "timm"), folder / "timm")
    side = CATALOG[name].resolution or 0
    hf_folder = write_transformers(locator(name, "hf"), state, folder / "hf", side)
    return {"timm": timm_folder, "hf": hf_folder}


@pytest.mark.parametrize("name", ["dino-s", "mae-b"])
def test_transformers_and_timm_give_the_same_features(name: str, tmp_path: Path) -> None:
    assert relative_difference(name, write_both(name, tmp_path)) < RELATIVE_TOLERANCE


def test_dinov2_agrees_where_position_embeddings_are_not_interpolated(tmp_path: Path) -> None:
    folders = write_both("dinov2-s", tmp_path)
    assert relative_difference("dinov2-s", folders, resolution=518) < RELATIVE_TOLERANCE


def test_a_difference_is_seen(tmp_path: Path) -> None:
    folders = write_both("dino-s", tmp_path)
    file = folders["timm"] / "model.safetensors"
    state = load_file(file)
    save_file(state | {"norm.bias": state["norm.bias"] + 0.1}, file)
    assert relative_difference("dino-s", folders) > 10 * RELATIVE_TOLERANCE


SMALL_TIMM: dict[str, Any] = {"embed_dim": 64, "depth": 2, "num_heads": 2}
SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256,
}  # fmt: skip
NO_BIAS = {"query_bias": False, "key_bias": False, "value_bias": False}


@pytest.mark.parametrize(
    ("name", "side", "config"),
    [
        ("ijepa-h", 224, {"model_type": "ijepa", "patch_size": 14}),
        ("dinov3-s", 256, {"model_type": "dinov3_vit", "num_register_tokens": 4, **NO_BIAS}),
    ],
)
def test_architectures_too_large_to_write_agree_when_they_are_small(
    name: str, side: int, config: dict[str, Any], tmp_path: Path
) -> None:
    # The catalogue's timm name, built narrower and shallower; layers -1 and -2.
    architecture = locator(name, "timm").partition(".")[0]
    state = timm_state(architecture, **SMALL_TIMM)
    save_file(state, tmp_path / "model.safetensors")
    whole = SMALL | config | {"image_size": side}
    hf_folder = write_backbone(whole, state, tmp_path / "hf", side)
    spec = replace(find_spec(f"timm:{architecture}"), architecture=SMALL_TIMM)
    ours = load_timm(spec, tmp_path, LoadOptions(layer=(-2, -1)))
    theirs = load_encoder(f"dir:{hf_folder}", layer=(-2, -1))
    assert ours.grid == theirs.grid
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens, other = ours(pixels), theirs(pixels)
    assert tokens.std() > 0.1
    assert (tokens - other).abs().max() < RELATIVE_TOLERANCE * tokens.std()


def test_siglip_differs_between_transformers_and_timm_by_its_gelu(tmp_path: Path) -> None:
    # The weights were trained with the tanh approximation, which transformers has and timm's B/16
    # has not: the check must see it, small as it is. The catalogue loads transformers' copy.
    assert relative_difference("siglip-b", write_both("siglip-b", tmp_path)) > RELATIVE_TOLERANCE
    assert CATALOG["siglip-b"].source == "hf"


def test_clip_is_the_same_in_three_libraries_at_the_last_layer_and_the_one_before(
    tmp_path: Path,
) -> None:
    folders = write_both("clip-b32", tmp_path)
    state = load_file(folders["timm"] / "model.safetensors")
    folders["open_clip"] = write_open_clip("ViT-B-32-quickgelu", state, tmp_path / "open_clip")
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for layer in ((-1,), (-2,)):
        with torch.no_grad():
            tokens = {
                form: load_encoder(f"clip-b32@{form}", weights=folder, layer=layer)(pixels)
                for form, folder in folders.items()
            }
        for form in ("hf", "open_clip"):
            assert torch.allclose(tokens["timm"], tokens[form], atol=1e-4), (layer, form)


def test_another_librarys_copy_has_its_own_name() -> None:
    spec = find_spec("dinov2-l@timm")
    assert (spec.source, spec.locator) == ("timm", "vit_large_patch14_dinov2.lvd142m")
    assert (spec.width, spec.resolution, spec.tokens) == (1024, 224, 256)
    with pytest.raises(UnknownNameError, match="source of dinov2-l"):
        find_spec("dinov2-l@open_clip")
