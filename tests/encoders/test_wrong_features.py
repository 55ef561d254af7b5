"""Ways to get wrong features without an error, each of which must be an error or be right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from encoder_bench.base.errors import WeightsError
from encoder_bench.encoders.bundled import tiny_processor
from encoder_bench.encoders.registry import load_encoder

PICTURE = Image.new("RGB", (50, 40), (200, 60, 10))


@pytest.fixture
def timm_file(tmp_path: Path) -> Path:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.nn.init.normal_(model.norm.weight)
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    return path


def test_timm_checkpoints_must_be_whole(timm_file: Path) -> None:
    state = load_file(timm_file)
    weight = state.pop("blocks.3.mlp.fc1.weight")
    save_file(state, timm_file)
    with pytest.raises(WeightsError, match=r"random values.*blocks\.3\.mlp\.fc1\.weight"):
        load_encoder("timm:vit_tiny_patch16_224", weights=timm_file)
    save_file(state | {"blocks.3.mlp.fc1.weight": weight, "extra": weight.clone()}, timm_file)
    with pytest.raises(WeightsError, match="does not have, the first extra"):
        load_encoder("timm:vit_tiny_patch16_224", weights=timm_file)


def test_the_last_layer_is_the_same_however_it_is_named(timm_file: Path) -> None:
    last, named, joined = (
        load_encoder("timm:vit_tiny_patch16_224", weights=timm_file, layer=layer)
        for layer in ((-1,), (11,), (-2, -1))
    )
    pixels = last.transform(PICTURE)[None]
    assert torch.equal(last(pixels), named(pixels))
    assert torch.equal(last(pixels), joined(pixels)[..., last.width :])


def test_openai_weights_are_refused_without_quick_gelu(timm_file: Path) -> None:
    with pytest.raises(WeightsError, match=r"vit_base_patch32_clip_quickgelu_224\.openai"):
        load_encoder("timm:vit_base_patch32_clip_224.openai", weights=timm_file)


def test_registers_are_counted_from_the_configuration(tmp_path: Path) -> None:
    import transformers

    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=64,
        patch_size=8, num_register_tokens=8,
    )  # fmt: skip
    transformers.Dinov2WithRegistersModel(config).save_pretrained(tmp_path)
    tiny_processor(64).save_pretrained(tmp_path)
    encoder = load_encoder(f"dir:{tmp_path}")
    assert encoder(encoder.transform(PICTURE)[None]).shape == (1, 64, 32)


def test_a_timm_trunk_in_open_clip_gives_its_last_block(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    name = "ViT-B-16-SigLIP"
    model = open_clip.create_model(name, pretrained=None)
    path = tmp_path / "open_clip_model.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    encoder = load_encoder(f"open_clip:{name}/webli", weights=path)
    pixels = encoder.transform(PICTURE)[None]
    with torch.no_grad():
        expected = model.visual.trunk.eval().forward_features(pixels)
        assert torch.allclose(encoder(pixels), expected, atol=1e-4)


@pytest.mark.parametrize(
    "pooling",
    [
        {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},  # as CLIPA
        {"attentional_pool": True},  # as CoCa
        {},
    ],
)
def test_open_clip_norms_its_tokens_only_where_the_norm_is_theirs(
    pooling: dict[str, object], tmp_path: Path
) -> None:
    import open_clip

    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-S-32-alt")
    config["vision_cfg"] |= {"layers": 2, **pooling}
    (tmp_path / "ViT-small-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    model = open_clip.create_model("ViT-small-test", pretrained=None)
    with torch.no_grad():
        model.visual.ln_post.weight.mul_(3.0)
    path = tmp_path / "open_clip_model.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    encoder, both = (
        load_encoder("open_clip:ViT-small-test/local", weights=path, layer=layer)
        for layer in ((-1,), (-2, -1))
    )
    own, seen = model.visual.eval(), []
    for block in own.transformer.resblocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens, joined = encoder(pixels), both(pixels)
        own(pixels)
        last = seen[1] if pooling else own.ln_post(seen[1])
        assert torch.allclose(tokens, last[:, 1:], atol=1e-5)
        assert torch.allclose(joined, torch.cat([seen[0][:, 1:], last[:, 1:]], -1), atol=1e-5)
    encoder(pixels).square().mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_another_size_of_the_family_is_refused(tmp_path: Path) -> None:
    from encoder_bench.encoders.bundled import seeded_backbone

    seeded_backbone("mae").save_pretrained(tmp_path)
    tiny_processor(64).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"128 wide with 6 blocks.*1024 and 24"):
        load_encoder("mae-l", weights=tmp_path)


def test_a_folder_with_a_pickle_only_is_refused(tmp_path: Path) -> None:
    from encoder_bench.encoders.bundled import seeded_backbone

    backbone = seeded_backbone("dino")
    backbone.config.save_pretrained(tmp_path)
    tiny_processor(64).save_pretrained(tmp_path)
    torch.save(backbone.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError):
        load_encoder("tiny-dino", weights=tmp_path)
