"""Every architecture that the loaders of transformers and timm know, small, read from disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from encoder_bench.base.errors import WeightsError
from encoder_bench.encoders.bundled import tiny_processor
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.hf_architectures import ARCHITECTURES, build_backbone
from encoder_bench.encoders.registry import load_encoder

VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 8,
}
STAGES: dict[str, Any] = {"image_size": 64, "patch_size": 4}
CONV = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}
SWIN = {"embed_dim": 16, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "window_size": 4}
DINOV2 = {key: value for key, value in VIT.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "deit": VIT,
    "vit": VIT,
    "vit_mae": VIT,
    "clip_vision_model": VIT | {"hidden_act": "quick_gelu"},
    "siglip_vision_model": VIT,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2 | {"num_register_tokens": 3},
    "dinov3_vit": VIT | {"num_register_tokens": 4},
    "ijepa": VIT,
    "beit": VIT | {"use_shared_relative_position_bias": True},
    "data2vec-vision": VIT | {"use_relative_position_bias": True},
    "vit_msn": VIT,
    "aimv2_vision_model": VIT,
    "swin": STAGES | SWIN,
    "swinv2": STAGES | SWIN,
    "convnext": CONV,
    "convnextv2": CONV,
    "dinov3_convnext": CONV,
}
PREFIX = {"deit": 2, "dinov2_with_registers": 4, "dinov3_vit": 5}
NONE = ("siglip_vision_model", "ijepa", "aimv2_vision_model", "swin", "swinv2", "convnext",
        "convnextv2")  # fmt: skip
TOKENS = {"swin": 16, "swinv2": 16, "convnext": 4, "convnextv2": 4, "dinov3_convnext": 4}


def write(kind: str, folder: Path) -> Any:
    torch.manual_seed(0)
    backbone = build_backbone({"model_type": kind, **CONFIGS[kind]})
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    backbone.save_pretrained(folder)
    tiny_processor(64).save_pretrained(folder)
    return backbone.eval()


def picture() -> Image.Image:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (80, 100, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def own_tokens(kind: str, backbone: Any, pixels: Tensor, **arguments: Any) -> Tensor:
    """Return the library's own patch tokens, by its own forward."""
    if kind == "vit_mae":
        count = (pixels.shape[-1] // 8) ** 2
        arguments["noise"] = torch.arange(float(count))[None]
    tokens: Tensor = backbone(pixels, **arguments).last_hidden_state
    if kind == "clip_vision_model":
        tokens = backbone.post_layernorm(tokens)
    if tokens.ndim == 4:
        return tokens.flatten(2).transpose(1, 2)
    return tokens[:, 0 if kind in NONE else PREFIX.get(kind, 1) :]


def test_every_architecture_is_here() -> None:
    assert set(ARCHITECTURES) - {"clip", "siglip", "aimv2"} == set(CONFIGS)


@pytest.mark.parametrize("kind", CONFIGS)
def test_features_are_the_librarys_own_and_only_patch_tokens(kind: str, tmp_path: Path) -> None:
    own = write(kind, tmp_path)
    encoder = load_encoder(f"dir:{tmp_path}")
    pixels = encoder.transform(picture())[None]
    with torch.no_grad():
        tokens = encoder(pixels)
        assert tokens.shape == (1, TOKENS.get(kind, 64), 64 if "swin" in kind else 32)
        assert tokens.shape[1:] == (encoder.num_tokens, encoder.width)
        assert torch.allclose(tokens, own_tokens(kind, own, pixels), atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_tokens_are_row_major_on_the_grid(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path)
    assert_row_major(load_encoder(f"dir:{tmp_path}"))


def assert_row_major(encoder: Encoder) -> None:
    rows, columns = encoder.grid
    height, width = encoder.resolution
    tall, wide = height // rows, width // columns
    row, column = rows - 1, 0
    lit = torch.zeros(1, 3, height, width)
    lit[:, :, row * tall : (row + 1) * tall, column * wide : (column + 1) * wide] = 3.0
    with torch.no_grad():
        change = (encoder(lit) - encoder(torch.zeros_like(lit))).norm(dim=-1)[0]
    assert int(change.argmax()) == row * columns + column


@pytest.mark.parametrize(
    "kind", [k for k, a in ARCHITECTURES.items() if k in CONFIGS and not a.hierarchical]
)
def test_another_resolution_equals_the_librarys_own_interpolation(
    kind: str, tmp_path: Path
) -> None:
    own = write(kind, tmp_path)
    if ARCHITECTURES[kind].other_sizes == "never":
        with pytest.raises(WeightsError, match="takes 64 pixels only, not 96"):
            load_encoder(f"dir:{tmp_path}", resolution=96)
        return
    encoder = load_encoder(f"dir:{tmp_path}", resolution=96)
    assert encoder.grid == (12, 12)
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    asks = ARCHITECTURES[kind].other_sizes == "argument"
    with torch.no_grad():
        expected = own_tokens(
            kind, own, pixels, **({"interpolate_pos_encoding": True} if asks else {})
        )
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "side"),
    [("swin", 96), ("swinv2", 96), ("convnext", 96), ("dinov3_convnext", 96), ("swin", 104)],
)
def test_a_hierarchy_takes_another_resolution_as_the_library_does(
    kind: str, side: int, tmp_path: Path
) -> None:
    own = write(kind, tmp_path)
    encoder = load_encoder(f"dir:{tmp_path}", resolution=side)
    swin = math.ceil(side / 16) ** 2  # which pads what its strides do not divide
    assert encoder.num_tokens == (swin if kind == "swin" else TOKENS[kind] * (side // 32) ** 2 // 4)
    assert encoder.grid[0] * encoder.grid[1] == encoder.num_tokens
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    asks = ARCHITECTURES[kind].other_sizes == "argument"
    with torch.no_grad():
        expected = own_tokens(
            kind, own, pixels, **({"interpolate_pos_encoding": True} if asks else {})
        )
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_joint_tuning_reaches_every_parameter_but_masks(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path)
    encoder = load_encoder(f"dir:{tmp_path}")
    encoder(torch.randn(2, 3, *encoder.resolution)).square().mean().backward()
    without = {name for name, p in encoder.backbone.named_parameters() if p.grad is None}
    # A mask token stands for masked patches only; ConvNeXt's last norm for the pooled vector.
    allowed = ("mask_token", "layernorm.") if "convnext" in kind else ("mask_token",)
    fixed = {n for n, p in encoder.backbone.named_parameters() if not p.requires_grad}
    assert all(any(word in name for word in allowed) for name in without - fixed), without


TIMM = {  # architecture -> tokens at its own size
    "swin_tiny_patch4_window7_224": 49,
    "swinv2_tiny_window8_256": 64,
    "convnext_atto": 49,
    "beit_base_patch16_224": 196,
    "eva02_tiny_patch14_224": 256,
    "vit_small_patch16_dinov3": 256,
    "vit_small_patch14_reg4_dinov2": 1369,
    "fastvit_mci0": 64,
    "focalnet_tiny_srf": 49,
    "maxvit_tiny_tf_224": 49,
    "inception_next_atto": 49,
    "vit_pe_core_tiny_patch16_384": 576,
    "deit_tiny_distilled_patch16_224": 196,
    "deit3_small_patch16_224": 196,
    "vit_tiny_r_s16_p8_224": 49,
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_families_give_patch_tokens(name: str, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    own = timm.create_model(name, num_classes=0).eval()
    save_file(
        {k: v.contiguous() for k, v in own.state_dict().items()}, tmp_path / "model.safetensors"
    )
    encoder = load_encoder(f"timm:{name}", weights=tmp_path)
    assert encoder.num_tokens == TIMM[name]
    pixels = encoder.transform(picture())[None]
    with torch.no_grad():
        tokens, features = encoder(pixels), own.forward_features(pixels)
    if features.ndim == 3:
        expected = features[:, own.num_prefix_tokens :]
    else:
        channels_last = features.shape[-1] == own.num_features
        expected = (features if channels_last else features.permute(0, 2, 3, 1)).flatten(1, 2)
    # 1e-5 of the largest feature: MaxViT's reach 40
    assert (tokens - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1.0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_timm_interpolates_as_timm_itself_does(name: str, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    trained = timm.create_model(name, num_classes=0)
    file = tmp_path / "model.safetensors"
    save_file(trained.state_dict(), file)
    side = 280 if "patch14" in name else 288
    own = timm.create_model(
        name,
        pretrained=True,
        num_classes=0,
        img_size=side,
        pretrained_cfg_overlay={"file": str(file)},
    ).eval()
    encoder = load_encoder(f"timm:{name}", weights=file, resolution=side)
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(encoder(pixels), own.forward_features(pixels)[:, 1:], atol=1e-5)


def test_open_clip_interpolates_as_open_clip_itself_does(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    name, file = "ViT-S-32-alt", tmp_path / "open_clip_model.safetensors"
    trained = open_clip.create_model(name, pretrained=None)
    save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, file)
    own = open_clip.create_model(name, pretrained=str(file), force_image_size=320).visual.eval()
    own.output_tokens = True
    encoder = load_encoder(f"open_clip:{name}/local", weights=file, resolution=320)
    assert encoder.grid == (10, 10)
    pixels = torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(encoder(pixels), own(pixels)[1], atol=1e-5)


def test_open_clip_preprocessing_is_that_of_the_tag(tmp_path: Path) -> None:
    # A checkpoint given as a file carries no mean and resize mode; the tag does (CLIPA squashes).
    import open_clip

    facts = open_clip.get_pretrained_cfg("ViT-B-16-SigLIP", "webli")
    model = open_clip.create_model("ViT-B-16-SigLIP", pretrained=None)
    file = tmp_path / "open_clip_model.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    encoder = load_encoder("open_clip:ViT-B-16-SigLIP/webli", weights=file)
    white = encoder.transform(Image.new("RGB", (50, 90), (255, 255, 255)))
    assert facts["mean"] == (0.5, 0.5, 0.5)
    assert torch.allclose(white, torch.ones_like(white), atol=1e-6)
    assert encoder.spec.prefix_tokens == 0


def test_a_class_token_alone_is_no_patch_token() -> None:
    with pytest.raises(WeightsError, match="gives its class token alone"):
        load_encoder("random:timm:pit_ti_224")


def test_layers_of_unequal_width_are_not_joined() -> None:
    with pytest.raises(WeightsError, match="layers -1, -2 are of unequal width"):
        load_encoder("random:timm:samvit_base_patch16", layer=(-1, -2), resolution=64)
