"""A checkpoint is read as its authors meant it: configuration, pixels, activation, dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from encoder_bench.base.errors import WeightsError
from encoder_bench.encoders.bundled import seeded_backbone, tiny_processor
from encoder_bench.encoders.catalog import CATALOG, parse_source
from encoder_bench.encoders.encoder import CombinedEncoder
from encoder_bench.encoders.facts import build_without_weights, can_be_computed
from encoder_bench.encoders.hf import resized
from encoder_bench.encoders.registry import find_spec, load_encoder
from tests.encoders.test_contract import picture, write_open_clip, write_timm, write_transformers

WHITE = Image.new("RGB", (50, 90), (255, 255, 255))
OTHER_MEAN, OTHER_STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
TIMM = "timm:vit_tiny_patch16_224"


def normalised_white(mean: Any, std: Any) -> torch.Tensor:
    return ((1 - torch.tensor(mean)) / torch.tensor(std))[:, None, None]


def assert_white(encoder: Any, mean: Any, std: Any) -> None:
    pixels = encoder.transform(WHITE)
    assert torch.allclose(pixels, normalised_white(mean, std).expand_as(pixels), atol=1e-5)


def test_mean_and_std_of_a_processor_are_used(tmp_path: Path) -> None:
    folder = write_transformers("dino", tmp_path)
    processor = tiny_processor()
    processor.image_mean, processor.image_std = list(OTHER_MEAN), list(OTHER_STD)
    processor.save_pretrained(folder)
    assert_white(load_encoder("tiny-dino", weights=folder), OTHER_MEAN, OTHER_STD)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("vit_tiny_patch16_224", (0.5,) * 3, (0.5,) * 3),
        ("deit_tiny_patch16_224", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (
            "vit_base_patch32_clip_quickgelu_224.openai",
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
    ],
)
def test_mean_and_std_of_timm_are_those_of_the_name(name: str, mean: Any, std: Any) -> None:
    assert_white(load_encoder(f"random:timm:{name}"), mean, std)


def test_what_ibot_and_moco_were_trained_with_stands_in_their_transform() -> None:
    families = {"ibot": "bicubic", "mocov3": "bilinear"}
    for spec in (s for s in CATALOG.values() if s.family in families):
        description = build_without_weights(spec).transform_description
        for part in ("(0.485, 0.456, 0.406)", "(0.229, 0.224, 0.225)", "crop_pct=0.875"):
            assert part in description
        assert f"interpolation={families[spec.family]}" in description
    for name in ("ibot-s", "mocov3-s"):
        encoder = load_encoder(f"random:{name}")
        assert_white(encoder, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("locator", "activation"),
    [("ViT-B-32/openai", "QuickGELU"), ("ViT-B-32/laion2b_s34b_b79k", "GELU")],
)
def test_open_clips_activation_is_that_of_the_tag(locator: str, activation: str) -> None:
    encoder = build_without_weights(find_spec(f"open_clip:{locator}"))
    mlp = encoder.backbone.transformer.resblocks[0].mlp
    assert type(mlp.gelu).__name__ == activation


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_open_clips_weights_have_the_dtype_that_is_asked_for(dtype: str, tmp_path: Path) -> None:
    folder = write_open_clip(tmp_path)
    encoder = load_encoder("open_clip:ViT-S-32-alt/local", weights=folder, dtype=dtype)
    assert {p.dtype for p in encoder.parameters()} == {getattr(torch, dtype)}
    if dtype == "bfloat16":
        assert encoder(encoder.pixels([WHITE])).dtype == torch.bfloat16


def test_the_resize_edge_keeps_its_ratio_to_the_crop() -> None:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    )
    larger = resized(processor, 448).to_dict()
    assert dict(larger["size"])["shortest_edge"] == 512
    assert dict(larger["crop_size"])["height"] == 448


def test_joined_encoders_share_the_first_ones_grid() -> None:
    fine = load_encoder("tiny-siglip", resolution=96)
    for first, second in (("tiny-clip", fine), (fine, "tiny-clip")):
        parts = [load_encoder(p) if isinstance(p, str) else p for p in (first, second)]
        both = CombinedEncoder(find_spec("tiny-clip+tiny-siglip"), parts)
        assert both.grid == parts[0].grid
        image = picture()
        with torch.no_grad():
            tokens = both(both.pixels([image]))
            own, other = (part(part.pixels([image])) for part in parts)
        assert torch.allclose(tokens[..., :128], own, atol=1e-5)
        side, wanted = parts[1].grid[0], both.grid
        maps = other.reshape(1, side, side, 128).permute(0, 3, 1, 2)
        expected = F.interpolate(maps, wanted, mode="bilinear", align_corners=False)
        assert torch.allclose(
            tokens[..., 128:].reshape(1, *wanted, 128), expected.permute(0, 2, 3, 1), atol=1e-5
        )


def test_a_timm_folders_own_configuration_wins(tmp_path: Path) -> None:
    folder = write_timm(tmp_path)
    own = {"mean": OTHER_MEAN, "std": OTHER_STD, "input_size": [3, 224, 224]}
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": own}
    (folder / "config.json").write_text(json.dumps(config))
    encoder = load_encoder(TIMM, weights=folder)
    assert_white(encoder, OTHER_MEAN, OTHER_STD)
    assert "states another mean, std than the name" in encoder.notes[0]
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_384"}))
    with pytest.raises(WeightsError, match="load it as timm:vit_tiny_patch16_384"):
        load_encoder(TIMM, weights=folder)


def test_a_timm_checkpoint_of_another_size_is_used_at_its_own(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 96, 96]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = load_encoder(TIMM, weights=tmp_path)
    assert (encoder.resolution, encoder.grid) == ((96, 96), (6, 6))
    assert "input_size" in encoder.notes[0]
    own = encoder.backbone.state_dict()["pos_embed"]
    assert torch.equal(own, model.state_dict()["pos_embed"])


def test_an_open_clip_folders_own_configuration_wins(tmp_path: Path) -> None:
    import open_clip

    folder = write_open_clip(tmp_path)
    name = "open_clip:ViT-S-32-alt/local"
    before = load_encoder(name, weights=folder)
    model = open_clip.get_model_config("ViT-S-32-alt") | {"quick_gelu": True}
    pixels = {"mean": OTHER_MEAN, "std": OTHER_STD, "resize_mode": "squash"}
    config = {"model_cfg": model, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    encoder = load_encoder(name, weights=folder)
    mlp = encoder.backbone.transformer.resblocks[0].mlp
    assert type(mlp.gelu).__name__ == "QuickGELU"
    assert_white(encoder, OTHER_MEAN, OTHER_STD)
    assert "quick_gelu" in encoder.notes[0]
    wide = picture((300, 60))
    squashed, cropped = encoder.transform(wide), before.transform(wide)
    assert squashed.shape == cropped.shape
    assert not torch.allclose(squashed.mean(0), cropped.mean(0), atol=0.1)
    assert not before.notes


def test_a_transformers_checkpoint_of_another_size_is_followed_and_said(tmp_path: Path) -> None:
    seeded_backbone("dino").save_pretrained(tmp_path)
    resized(tiny_processor(), 96).save_pretrained(tmp_path)
    named = load_encoder("tiny-dino", weights=tmp_path)
    assert named.resolution == (96, 96)
    assert "the name stands for 72 px" in named.notes[0]
    assert "are for 72 px and are interpolated" in load_encoder(f"dir:{tmp_path}").notes[0]
    assert not load_encoder("tiny-dino", weights=tmp_path, resolution=96).notes
    assert not load_encoder("tiny-dino").notes


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("preprocessor_config.json", "do_normalize", False),
        ("preprocessor_config.json", "do_rescale", False),
        ("config.json", "num_attention_heads", 8),
        ("config.json", "layer_norm_eps", 0.1),
        ("config.json", "hidden_act", "relu"),
    ],
)
def test_an_edited_checkpoint_is_another_encoder(
    file: str, key: str, value: Any, tmp_path: Path
) -> None:
    folder = write_transformers("clip", tmp_path)
    before = load_encoder(f"dir:{folder}")
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | {key: value}))
    after = load_encoder(f"dir:{folder}")
    features = [each(each.transform(picture())[None]) for each in (before, after)]
    assert not torch.allclose(*features, atol=1e-4)
    assert before.fingerprint() != after.fingerprint()


def test_what_changes_no_feature_changes_no_fingerprint(tmp_path: Path) -> None:
    folder = write_transformers("clip", tmp_path)
    before = load_encoder(f"dir:{folder}").fingerprint()
    settings = json.loads((folder / "config.json").read_text())
    other = {"attention_dropout": 0.5, "transformers_version": "5.0.0", "id2label": {"0": "a"}}
    (folder / "config.json").write_text(json.dumps(settings | other))
    assert load_encoder(f"dir:{folder}").fingerprint() == before


@pytest.mark.parametrize("family", ["deit", "clip", "siglip"])
@pytest.mark.parametrize("size", [(72, 144), (144, 72)])
def test_a_processor_of_an_oblong_size_is_followed(
    family: str, size: tuple[int, int], tmp_path: Path
) -> None:
    folder = write_transformers(family, tmp_path)
    processor = tiny_processor()
    processor.size = {"height": size[0], "width": size[1]}
    processor.save_pretrained(folder)
    encoder = load_encoder(f"dir:{folder}")
    assert encoder.grid == (size[0] // 12, size[1] // 12)
    tokens = encoder(encoder.transform(picture())[None])
    assert tokens.shape[1] == encoder.num_tokens


def test_convnexts_own_processor_is_read(tmp_path: Path) -> None:
    from transformers import ConvNextConfig, ConvNextImageProcessor, ConvNextModel

    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}
    ConvNextModel(ConvNextConfig(**sizes)).save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875).save_pretrained(tmp_path)
    own, larger = load_encoder(f"dir:{tmp_path}"), load_encoder(f"dir:{tmp_path}", resolution=96)
    assert (own.resolution, own.grid) == ((64, 64), (2, 2))
    assert (larger.resolution, larger.grid) == ((96, 96), (3, 3))
    assert larger(larger.transform(picture())[None]).shape[1] == 9
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.5).save_pretrained(tmp_path)
    assert load_encoder(f"dir:{tmp_path}").fingerprint() != own.fingerprint()


def sources(name: str) -> list[str]:
    forms = [parse_source(source)[0] for source in CATALOG[name].sources]
    return [f"{name}@{form}" for form in forms if can_be_computed(find_spec(f"{name}@{form}"))]


@pytest.mark.parametrize("family", sorted({s.family for s in CATALOG.values()} - {"random"}))
def test_all_sources_of_a_name_give_the_same_tokens(family: str) -> None:
    for spec in (s for s in CATALOG.values() if s.family == family and len(s.sources) > 1):
        facts = {(find_spec(n).resolution, find_spec(n).tokens) for n in sources(spec.name)}
        assert facts == {(spec.resolution, spec.tokens)}


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "regnetx_002", "resnet10t"])
def test_a_convolutional_model_takes_any_size(name: str) -> None:
    encoder = load_encoder(f"random:timm:{name}", resolution=96)
    assert encoder.resolution == (96, 96)
    assert encoder(torch.zeros(1, 3, 96, 96)).shape[1] == 9
