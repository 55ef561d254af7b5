"""Every loader, on small checkpoints in each library's own format, through the ordinary path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from encoder_bench.base.errors import UnknownNameError, WeightsError
from encoder_bench.base.hashing import hash_parameters
from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.encoders.bundled import seeded_backbone, tiny_processor
from encoder_bench.encoders.encoder import Encoder, encode_images
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.projectors import build_projector

FAMILIES = ("deit", "clip", "siglip", "mae", "dino", "dinov2")
PREFIX = {"deit": 1, "clip": 1, "siglip": 0, "mae": 1, "dino": 1, "dinov2": 1}


def write_transformers(family: str, folder: Path) -> Path:
    backbone = seeded_backbone(family)
    with torch.no_grad():  # not the seeded weights, so that reading them shows
        for parameter in backbone.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    backbone.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def write_timm(folder: Path) -> Path:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def write_open_clip(folder: Path) -> Path:
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt", pretrained=None)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


@pytest.fixture(scope="module", params=[*FAMILIES, "timm", "open_clip"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "timm":
        return load_encoder("timm:vit_tiny_patch16_224", weights=write_timm(folder))
    if request.param == "open_clip":
        return load_encoder("open_clip:ViT-S-32-alt/local", weights=write_open_clip(folder))
    return load_encoder(f"tiny-{request.param}", weights=write_transformers(request.param, folder))


def picture(size: tuple[int, int] = (120, 90)) -> Image.Image:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_patch_tokens_only_on_the_stated_grid(loaded: Encoder) -> None:
    pixels = loaded.transform(picture())[None]
    assert pixels.dtype == torch.float32
    assert pixels.shape[2:] == loaded.resolution
    tokens = loaded(pixels)
    assert tokens.shape == (1, loaded.num_tokens, loaded.width)
    assert loaded.grid[0] * loaded.grid[1] == loaded.num_tokens
    assert torch.isfinite(tokens).all()
    assert loaded.pretrained


def test_tokens_are_row_major(loaded: Encoder) -> None:
    # A change in one patch's pixels changes that patch's token most.
    height, width = loaded.resolution
    rows, columns = loaded.grid
    base = torch.zeros(1, 3, height, width)
    row, column = 1, columns - 2
    lit = base.clone()
    tall, wide = height // rows, width // columns
    lit[:, :, row * tall : (row + 1) * tall, column * wide : (column + 1) * wide] = 3.0
    with torch.no_grad():
        change = (loaded(lit) - loaded(base)).norm(dim=-1)[0]
    assert int(change.argmax()) == row * columns + column


def test_a_loaded_encoder_is_in_eval_mode_and_repeats_itself(loaded: Encoder) -> None:
    assert not any(module.training for module in loaded.backbone.modules())
    pixels = loaded.transform(picture())[None]
    assert torch.equal(loaded(pixels), loaded(pixels))


def test_joint_tuning_moves_every_parameter_but_masks(loaded: Encoder) -> None:
    loaded.requires_grad_(True)
    loaded.zero_grad()
    loaded(loaded.transform(picture())[None]).square().mean().backward()
    still = {
        name
        for name, parameter in loaded.backbone.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    # A mask token stands for masked patches only; a shift of all keys cancels in the softmax.
    assert all("mask_token" in name or "k_proj.bias" in name for name in still), still
    loaded.zero_grad()


def test_frozen_training_leaves_every_bit_and_no_gradient(loaded: Encoder) -> None:
    from encoder_bench.mllm.trainable import prove, set_trainable, snapshot
    from tests.mllm.models import small_language

    language = small_language()
    projector = build_projector(
        ProjectorSettings(name="linear"),
        grid=loaded.grid,
        width=loaded.width,
        llm_width=language.width,
    )
    mllm = MLLM(loaded, projector, language)
    set_trainable(mllm, encoder=False, llm="frozen")
    before, bits = snapshot(mllm), hash_parameters(loaded.backbone)
    mllm.train()
    assert not any(module.training for module in loaded.modules())
    optimizer = torch.optim.SGD(mllm.projector.parameters(), lr=0.1)
    pixels = loaded.transform(picture())[None]
    for _ in range(2):
        mllm.visual_tokens(mllm.features(pixels)).square().mean().backward()
        optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in loaded.parameters())
    assert hash_parameters(loaded.backbone) == bits
    trained = {"encoder": False, "projector": True, "llm": False}
    assert prove(mllm, before, should_train=trained)["projector"].relative_change > 0
    loaded.requires_grad_(True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_have_the_dtype_that_is_asked_for(dtype: str, tmp_path: Path) -> None:
    timm_folder, hf_folder = tmp_path / "timm", write_transformers("dino", tmp_path / "hf")
    for encoder in (
        load_encoder("tiny-dino", weights=hf_folder, dtype=dtype),
        load_encoder("timm:vit_tiny_patch16_224", weights=write_timm(timm_folder), dtype=dtype),
    ):
        kinds = {p.dtype for p in encoder.parameters() if p.is_floating_point()}
        assert kinds == {getattr(torch, dtype)}


@pytest.mark.parametrize("source", ["timm", "open_clip"])
def test_layers_of_timm_and_open_clip_are_the_blocks_own_outputs(
    source: str, tmp_path: Path
) -> None:
    name = "timm:vit_tiny_patch16_224" if source == "timm" else "open_clip:ViT-S-32-alt/local"
    folder = (write_timm if source == "timm" else write_open_clip)(tmp_path)
    encoder = load_encoder(name, weights=folder, layer=(-2, 3, -1))
    backbone, seen = encoder.backbone, {}
    blocks = backbone.blocks if source == "timm" else backbone.transformer.resblocks
    for index in (len(blocks) - 2, 3):
        blocks[index].register_forward_hook(
            lambda _, __, output, index=index: seen.__setitem__(index, output)
        )
    pixels = encoder.transform(picture())[None]
    with torch.no_grad():
        tokens = encoder(pixels)
        alone = load_encoder(name, weights=folder)(pixels)
    expected = [seen[len(blocks) - 2][:, 1:], seen[3][:, 1:], alone]
    assert torch.allclose(tokens, torch.cat(expected, dim=-1), atol=1e-5)
    with pytest.raises(WeightsError, match="blocks"):
        load_encoder(name, weights=folder, layer=(40,))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_the_librarys_own_forward(family: str, tmp_path: Path) -> None:
    import transformers

    folder = write_transformers(family, tmp_path)
    encoder = load_encoder(f"tiny-{family}", weights=folder)
    own: Any = getattr(transformers, type(encoder.backbone).__name__).from_pretrained(folder)
    pixels = encoder.transform(picture())[None]
    with torch.no_grad():
        expected = own.eval()(pixels).last_hidden_state[:, PREFIX[family] :]
        if family == "clip":  # its last_hidden_state comes before the final norm
            expected = own.post_layernorm(expected)
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layer_that_is_asked_for_is_returned(family: str, tmp_path: Path) -> None:
    folder = write_transformers(family, tmp_path)
    encoder = load_encoder(f"tiny-{family}", weights=folder, layer=(-2, -1))
    last = load_encoder(f"tiny-{family}", weights=folder)
    pixels = encoder.transform(picture())[None]
    arguments: dict[str, Any] = {"output_hidden_states": True}
    with torch.no_grad():
        before = encoder.backbone(pixels, **arguments).hidden_states[-2][:, PREFIX[family] :]
        tokens = encoder(pixels)
    assert encoder.width == 2 * last.width
    assert torch.allclose(tokens[..., : last.width], before, atol=1e-5)
    assert torch.allclose(tokens[..., last.width :], last(pixels), atol=1e-5)
    assert encoder.fingerprint() != last.fingerprint()
    positive = load_encoder(f"tiny-{family}", weights=folder, layer=(4,))
    assert torch.allclose(positive(pixels), before, atol=1e-5)
    with pytest.raises(WeightsError, match="--layer 6 is none of its 6 blocks"):
        load_encoder(f"tiny-{family}", weights=folder, layer=(6,))


@pytest.mark.parametrize("family", FAMILIES)
def test_another_resolution_has_another_grid(family: str, tmp_path: Path) -> None:
    folder = write_transformers(family, tmp_path)
    encoder = load_encoder(f"tiny-{family}", weights=folder, resolution=96)
    assert encoder.grid == (8, 8)
    tokens = encoder(encoder.transform(picture())[None])
    assert tokens.shape == (1, 64, 128)
    with pytest.raises(WeightsError, match="not a multiple of its patch of 12"):
        load_encoder(f"tiny-{family}", weights=folder, resolution=64)


def drop_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    state.pop(sorted(name for name in state if "layer" in name)[0])
    save_file(state, path, metadata={"format": "pt"})


def add_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path) | {"extra.weight": torch.zeros(2)}
    save_file(state, path, metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def rename_type(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "bert"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop_a_tensor, "random values"),
        (add_a_tensor, "does not have"),
        (truncate, "truncated or damaged"),
        (rename_type, "unknown vision architecture 'bert'"),
        (lambda folder: (folder / "config.json").unlink(), "cannot be read"),
    ],
)
def test_checkpoints_that_are_not_whole_are_refused(
    damage: Callable[[Path], Any], words: str, tmp_path: Path
) -> None:
    folder = write_transformers("dino", tmp_path)
    damage(folder)
    with pytest.raises((WeightsError, UnknownNameError), match=words):
        load_encoder("tiny-dino", weights=folder)


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    folder = write_transformers("clip", tmp_path)
    with pytest.raises(WeightsError, match="not a dinov2"):
        load_encoder("dinov2-l", weights=folder)
    assert load_encoder(f"dir:{folder}").pretrained


def test_a_pickled_checkpoint_is_not_picked_from_a_folder(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.bin")
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        load_encoder("timm:vit_tiny_patch16_224", weights=tmp_path)
    with pytest.raises(WeightsError, match="150 parameters at random values"):
        load_encoder("timm:vit_tiny_patch16_224", weights=tmp_path / "model.bin")


def test_timm_features_equal_timms(tmp_path: Path) -> None:
    import timm

    folder = write_timm(tmp_path)
    encoder = load_encoder("timm:vit_tiny_patch16_224", weights=folder)
    own = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    own.load_state_dict(load_file(folder / "model.safetensors"))
    pixels = encoder.transform(picture())[None]
    with torch.no_grad():
        expected = own.eval().forward_features(pixels)[:, 1:]
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)


def test_open_clip_features_are_the_towers_own(tmp_path: Path) -> None:
    import open_clip

    folder = write_open_clip(tmp_path)
    encoder = load_encoder("open_clip:ViT-S-32-alt/local", weights=folder)
    own = open_clip.create_model(
        "ViT-S-32-alt", pretrained=str(folder / "open_clip_model.safetensors")
    ).visual.eval()
    own.output_tokens = True
    pixels = encoder.transform(picture())[None]
    with torch.no_grad():
        _, tokens = own(pixels)
        assert torch.allclose(encoder(pixels), tokens, atol=1e-4)


def test_two_encoders_stand_side_by_side() -> None:
    both = load_encoder("tiny-clip+tiny-siglip")
    image = picture()
    tokens = both(both.transform(image)[None])
    for name, part in (("tiny-clip", tokens[..., :128]), ("tiny-siglip", tokens[..., 128:])):
        alone = load_encoder(name)
        assert torch.allclose(alone(alone.transform(image)[None]), part, atol=1e-5)


def test_the_fingerprint_follows_weights_and_preprocessing() -> None:
    encoder = load_encoder("tiny-deit")
    before = encoder.fingerprint()
    assert load_encoder("tiny-deit").fingerprint() == before
    assert load_encoder("tiny-deit", resolution=96).fingerprint() != before
    with torch.no_grad():
        next(encoder.backbone.parameters()).add_(1e-3)
    assert encoder.fingerprint() != before


def test_a_layer_of_a_hierarchical_encoder_is_refused_with_what_to_do() -> None:
    with pytest.raises(WeightsError, match="of which layer -2 could be read; pass --layer -1"):
        load_encoder("random:timm:test_convnext", layer=(-2,))
    assert load_encoder("random:timm:test_convnext", layer=(-1,)).blocks is None


def test_a_dtype_that_overflows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder("tiny-dino", dtype="float16")
    images = [Image.new("RGB", (40, 30), colour) for colour in ("red", "white", "blue")]
    forward = encoder.forward
    scale = 4 * 65_504 / float(next(encode_images(encoder, images)).abs().max())
    monkeypatch.setattr(encoder, "forward", lambda pixels: scale * forward(pixels))
    with pytest.raises(WeightsError, match=r"not finite for . of 3 images, in float16; set its"):
        list(encode_images(encoder, images))
