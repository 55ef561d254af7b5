"""The same weights written in each library's own format are one encoder: equal features."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from encoder_bench.base.errors import RecipeError, UnknownNameError, WeightsError
from encoder_bench.cli.app import app
from encoder_bench.encoders.agreement import RELATIVE_TOLERANCE, compare_sources
from encoder_bench.encoders.bundled import tiny_processor
from encoder_bench.encoders.catalog import CATALOG, parse_source, transformers_configs
from encoder_bench.encoders.hf_architectures import build_backbone
from encoder_bench.encoders.registry import find_spec, load_encoder
from encoder_bench.encoders.timm import load_timm

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
    processor = tiny_processor()
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


@pytest.mark.parametrize(
    ("name", "resolution"), [("dino-s", 224), ("dinov2-s", 518), ("mae-b", 224)]
)
def test_transformers_and_timm_give_the_same_features(
    name: str, resolution: int, tmp_path: Path
) -> None:
    timm_folder, state = write_timm(locator(name, "timm"), tmp_path / "timm")
    hf_folder = write_transformers(locator(name, "hf"), state, tmp_path / "hf", resolution)
    report = compare_sources(
        name, resolution=resolution, weights=[f"timm={timm_folder}", f"hf={hf_folder}"]
    )
    (pair,) = report["pairs"]
    assert pair["agree"], pair
    assert pair["spread"] > 0.1


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
    layers: dict[str, Any] = {"layer": (-2, -1), "resolution": None}
    ours = load_timm(spec, tmp_path, dtype=torch.float32, **layers)
    theirs = load_encoder(f"dir:{hf_folder}", **layers)
    assert ours.grid == theirs.grid
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens, other = ours(pixels), theirs(pixels)
    assert tokens.std() > 0.1
    assert (tokens - other).abs().max() < RELATIVE_TOLERANCE * tokens.std()


def test_siglip_differs_between_transformers_and_timm_by_its_gelu(tmp_path: Path) -> None:
    # The weights were trained with the tanh approximation, which transformers has and timm's B/16
    # has not: the check must see it, small as it is. The catalogue loads transformers' copy.
    timm_folder, state = write_timm(locator("siglip-b", "timm"), tmp_path / "timm")
    hf_folder = write_transformers(locator("siglip-b", "hf"), state, tmp_path / "hf", 224)
    report = compare_sources("siglip-b", weights=[f"timm={timm_folder}", f"hf={hf_folder}"])
    (pair,) = report["pairs"]
    assert not pair["agree"]
    assert pair["largest_difference"] < 0.02 * pair["spread"]
    assert CATALOG["siglip-b"].source == "hf"


def test_clip_is_the_same_in_three_libraries_at_the_last_layer_and_the_one_before(
    tmp_path: Path,
) -> None:
    timm_folder, state = write_timm(locator("clip-b32", "timm"), tmp_path / "timm")
    hf_folder = write_transformers(locator("clip-b32", "hf"), state, tmp_path / "hf", 224)
    open_clip_folder = write_open_clip("ViT-B-32-quickgelu", state, tmp_path / "open_clip")
    folders = {"timm": timm_folder, "hf": hf_folder, "open_clip": open_clip_folder}
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for layer in ((-1,), (-2,)):
        with torch.no_grad():
            tokens = {
                form: load_encoder(f"clip-b32@{form}", weights=folder, layer=layer)(pixels)
                for form, folder in folders.items()
            }
        for form in ("hf", "open_clip"):
            assert torch.allclose(tokens["timm"], tokens[form], atol=1e-4), (layer, form)
    report = CliRunner().invoke(
        app,
        ["encoders", "sources", "clip-b32", *(f"--weights={f}={p}" for f, p in folders.items())],
    )
    assert report.exit_code == 0, report.output
    assert report.output.count("; the same") == 3


def test_a_difference_is_seen(tmp_path: Path) -> None:
    timm_folder, state = write_timm(locator("dino-s", "timm"), tmp_path / "timm")
    state["norm.bias"] = state["norm.bias"] + 0.1
    hf_folder = write_transformers(locator("dino-s", "hf"), state, tmp_path / "hf", 224)
    arguments = ["encoders", "sources", "dino-s", f"--weights=timm={timm_folder}"]
    result = CliRunner().invoke(app, [*arguments, f"--weights=hf={hf_folder}"])
    assert result.exit_code == 1
    assert "NOT the same" in result.output


def test_one_source_is_not_enough_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="0 of its 1 sources"):
        compare_sources("beit-b")
    with pytest.raises(RecipeError, match="hf or timm=PATH for dino-s"):
        compare_sources("dino-s", weights=["open_clip=x"])


def test_another_librarys_copy_has_its_own_name() -> None:
    spec = find_spec("dinov2-l@timm")
    assert (spec.source, spec.locator) == ("timm", "vit_large_patch14_dinov2.lvd142m")
    assert (spec.width, spec.resolution) == (1024, None)
    with pytest.raises(UnknownNameError, match="source of dinov2-l"):
        find_spec("dinov2-l@open_clip")
