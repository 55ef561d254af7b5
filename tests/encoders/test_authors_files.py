"""`--weights FILE`: checkpoints as an encoder's authors publish and their scripts save them."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from encoder_bench.base.errors import WeightsError
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.encoders.timm import state_filter
from encoder_bench.encoders.weights import encoder_tensors, read_tensors

OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
ARGUMENTS = argparse.Namespace(model="vit", output_dir=Path("runs"), lr=0.1)


def timm_state(name: str) -> dict[str, Tensor]:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return {k: v for k, v in model.state_dict().items() if not k.startswith("attn_pool")}


def mae(state: dict[str, Tensor]) -> Any:
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 8)}
    return {"model": state | decoder, "optimizer": OPTIMIZER, "epoch": 3, "args": ARGUMENTS}


def dino(state: dict[str, Tensor]) -> Any:
    """DINO's full checkpoint: the teacher is what is evaluated."""
    student = {f"module.backbone.{k}": v + 1 for k, v in state.items()}
    teacher = {f"backbone.{k}": v for k, v in state.items()} | {"head.mlp.0.weight": torch.ones(2)}
    return {"student": student, "teacher": teacher, "optimizer": OPTIMIZER, "args": ARGUMENTS}


def averaged(state: dict[str, Tensor]) -> Any:
    return {"model": {k: v + 1 for k, v in state.items()}, "model_ema": state, "args": ARGUMENTS}


def deit(state: dict[str, Tensor]) -> Any:
    head = {"head.weight": torch.zeros(9, 192), "head.bias": torch.zeros(9)}
    return {"model": {f"module.{k}": v for k, v in (state | head).items()}, "optimizer": OPTIMIZER}


@pytest.mark.parametrize(
    ("name", "architecture", "wrap"),
    [
        ("mae-b", "vit_base_patch16_224", mae),
        ("dino-s", "vit_small_patch16_224", dino),
        ("dino-s", "vit_small_patch16_224", averaged),
        ("deit-ti", "deit_tiny_patch16_224", deit),
        ("vit-ti", "vit_tiny_patch16_224", lambda state: {f"model.{k}": state[k] for k in state}),
    ],
)
def test_a_training_checkpoint_is_the_encoder_in_it(
    name: str, architecture: str, wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path
) -> None:
    state = timm_state(architecture)
    torch.save(wrap(state), tmp_path / "checkpoint.pth")
    encoder = load_encoder(name, weights=tmp_path / "checkpoint.pth")
    own = encoder.backbone.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in own.items())
    assert encoder.spec.name == name
    assert encoder.pretrained


def test_dinov2s_file_keeps_the_names_resolution(tmp_path: Path) -> None:
    # Its position embeddings are for 518 px; the name stands for 224 px and 256 tokens.
    import timm

    state = timm_state("vit_small_patch14_dinov2")
    file = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save(state | {"mask_token": torch.zeros(1, 384)}, file)
    encoder = load_encoder("dinov2-s", weights=file)
    assert (encoder.num_tokens, encoder.resolution) == (256, (224, 224))
    own = timm.create_model(
        "vit_small_patch14_dinov2",
        pretrained=True,
        num_classes=0,
        img_size=224,
        pretrained_cfg_overlay={"file": str(file)},
    ).eval()
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(encoder(pixels), own.forward_features(pixels)[:, 1:], atol=1e-5)


def chunked(state: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Return a state in the names of DINOv2's training code, with `blocks` in each chunk."""

    def renamed(match: re.Match[str]) -> str:
        return f"blocks.{int(match[1]) // blocks}.{match[1]}."

    return {re.sub(r"^blocks\.(\d+)\.", renamed, k): v for k, v in state.items()}


def test_a_training_checkpoint_of_dinov2_has_its_blocks_in_chunks(tmp_path: Path) -> None:
    state = timm_state("vit_small_patch14_dinov2")
    teacher = chunked(state | {"mask_token": torch.zeros(1, 384)}, 3)
    assert "blocks.3.10.ls1.gamma" in teacher
    heads = {"dino_head.mlp.0.weight": torch.ones(2), "ibot_head.mlp.0.weight": torch.ones(2)}
    file = tmp_path / "teacher_checkpoint.pth"
    torch.save({"teacher": {f"backbone.{k}": v for k, v in teacher.items()} | heads}, file)
    encoder = load_encoder("timm:vit_small_patch14_dinov2", weights=file)
    own = encoder.backbone.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in own.items())


WEBSSL_NAMES = {
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^embeddings\.position_embeddings": "pos_embed",
    r"^embeddings\.": "",
    r"^(encoder\.)?layers?\.": "blocks.",
    r"attention\.o_proj": "attn.proj",
    r"attention\.([qkv])_proj": r"attn.\1",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
    r"mlp\.down_proj": "mlp.w3",
    r"^layernorm": "norm",
}


@pytest.mark.parametrize("name", ["webssl-dino-1b", "webssl-mae-300m"])
def test_webssls_own_file_gives_the_features_of_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the names of facebookresearch/webssl, at a size that fits a test."""
    from encoder_bench.encoders import registry
    from encoder_bench.encoders.hf_architectures import build_backbone

    locator = registry.find_spec(name).locator
    entry = registry.transformers_configs()[locator]
    small = {"hidden_size": 80, "num_hidden_layers": 4, "num_attention_heads": 2}
    small |= {"intermediate_size": 320} if "intermediate_size" in entry["config"] else {}
    config = entry["config"] | small
    entries = {locator: entry | {"config": config}}
    monkeypatch.setattr(registry, "transformers_configs", lambda: entries)
    torch.manual_seed(0)
    theirs = build_backbone(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    state = {}
    for key, tensor in theirs.state_dict().items():
        for pattern, own in WEBSSL_NAMES.items():
            key = re.sub(pattern, own, key)
        state[key] = tensor
    for block in range(4):
        for kind in ("weight", "bias"):
            joined = {"attn.qkv": ("attn.q", "attn.k", "attn.v"),
                      "mlp.w12": ("mlp.gate_proj", "mlp.up_proj")}  # fmt: skip
            for whole, parts in joined.items():
                names = [f"blocks.{block}.{part}.{kind}" for part in parts]
                if names[0] in state:
                    found = [state.pop(each) for each in names]
                    state[f"blocks.{block}.{whole}.{kind}"] = torch.cat(found)
    file = tmp_path / f"{name}.pth"
    torch.save(chunked(state, 1) if "dino" in name else state, file)
    encoder = load_encoder(name, weights=file)
    assert encoder.spec.name == name
    assert encoder.pretrained
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state[:, 1:]
        assert torch.allclose(encoder(pixels), expected, atol=1e-4)


def test_openais_torchscript_archive_gives_the_librarys_own_features(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, precision="fp16")
    state = {k: v for k, v in model.state_dict().items() if k.startswith("visual.")}
    archive = tmp_path / "ViT-B-32.pt"
    torch.jit.script(nested(state)).save(str(archive))
    encoder = load_encoder("clip-b32", weights=archive)
    own = model.float().visual.eval()
    own.output_tokens = True
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(encoder(pixels), own(pixels)[1], atol=1e-4)


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def nested(state: dict[str, Tensor]) -> nn.Module:
    """Return a module with these names, as a TorchScript archive holds them."""
    root = Nested()
    for name, tensor in state.items():
        module: nn.Module = root
        *parts, last = name.split(".")
        for part in parts:
            if part not in dict(module.named_children()):
                module.add_module(part, Nested())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(tensor))
    return root


def jax_arrays(state: dict[str, Tensor], heads: int) -> dict[str, Any]:
    """Return timm's state dict under the names and layouts of Google's JAX checkpoints."""
    width = state["pos_embed"].shape[-1]
    shape = (heads, width // heads)
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for i in range(12):
        block, own = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        attention = f"{block}MultiHeadDotProductAttention_0/"
        for part, weight, bias in zip(
            ("query", "key", "value"),
            state[f"{own}attn.qkv.weight"].chunk(3),
            state[f"{own}attn.qkv.bias"].chunk(3),
            strict=True,
        ):
            arrays[f"{attention}{part}/kernel"] = weight.T.reshape(width, *shape)
            arrays[f"{attention}{part}/bias"] = bias.reshape(shape)
        arrays[f"{attention}out/kernel"] = state[f"{own}attn.proj.weight"].T.reshape(*shape, width)
        arrays[f"{attention}out/bias"] = state[f"{own}attn.proj.bias"]
        for number in (0, 1):
            norm, dense = f"{own}norm{number + 1}.", f"{own}mlp.fc{number + 1}."
            arrays[f"{block}LayerNorm_{number}/scale"] = state[f"{norm}weight"]
            arrays[f"{block}LayerNorm_{number}/bias"] = state[f"{norm}bias"]
            arrays[f"{block}MlpBlock_0/Dense_{number}/kernel"] = state[f"{dense}weight"].T
            arrays[f"{block}MlpBlock_0/Dense_{number}/bias"] = state[f"{dense}bias"]
    return {f"params/img/{key}": value.numpy() for key, value in arrays.items()}


def siglip_pooling() -> dict[str, Any]:
    head, attention = "params/img/MAPHead_0/", "MultiHeadDotProductAttention_0/"
    arrays = {"probe": np.zeros((1, 1, 768))}
    arrays |= {f"{attention}{n}/kernel": np.zeros((768, 12, 64)) for n in ("query", "key", "value")}
    arrays |= {f"{attention}{n}/bias": np.zeros((12, 64)) for n in ("query", "key", "value")}
    arrays |= {
        f"{attention}out/kernel": np.zeros((12, 64, 768)),
        f"{attention}out/bias": np.zeros(768),
    }
    arrays |= {"LayerNorm_0/scale": np.ones(768), "LayerNorm_0/bias": np.zeros(768)}
    for number, shape in enumerate(((768, 3072), (3072, 768))):
        arrays[f"MlpBlock_0/Dense_{number}/kernel"] = np.zeros(shape)
        arrays[f"MlpBlock_0/Dense_{number}/bias"] = np.zeros(shape[1])
    return {head + key: value.astype(np.float32) for key, value in arrays.items()}


def test_big_visions_npz_is_read_with_the_activation_it_was_trained_with(tmp_path: Path) -> None:
    state = timm_state("vit_base_patch16_siglip_224")
    arrays = jax_arrays(state, heads=12) | siglip_pooling()
    file = tmp_path / "webli_en_b16_224.npz"
    np.savez(file, **arrays)
    encoder = load_encoder("siglip-b", weights=file)
    own = encoder.backbone.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in own.items())
    assert encoder.backbone.blocks[0].mlp.act.__class__.__name__ == "GELUTanh"
    del arrays["params/img/Transformer/encoder_norm/bias"]
    np.savez(file, **arrays)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_encoder("siglip-b", weights=file)


def test_what_training_scripts_save_is_read_or_refused_with_the_remedy(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96)
    compiled = {f"model._orig_mod.{k}": v for k, v in model.state_dict().items()}
    file = tmp_path / "epoch=3.ckpt"
    saved = {"state_dict": compiled | {"criterion.weight": torch.ones(3)}}
    saved |= {"best": np.float64(81.5), "random": np.arange(4, dtype=np.uint32)}
    torch.save(saved, file)
    encoder = load_encoder("timm:vit_tiny_patch16_224", weights=file)
    (note,) = encoder.notes
    assert "are for 37 tokens, those here for 197" in note
    own = load_encoder("timm:vit_tiny_patch16_224", weights=file, resolution=96)
    assert not own.notes
    assert torch.equal(own.backbone.pos_embed, model.pos_embed)

    wrong = file.with_name("W.PTH")
    torch.save(model.state_dict(), wrong)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  W.PTH\n")
    with pytest.raises(WeightsError, match=r"W\.PTH is damaged or was changed"):
        load_encoder("timm:vit_tiny_patch16_224", weights=wrong)

    pooled = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="avg")
    torch.save(pooled.state_dict(), tmp_path / "pooled.pth")
    with pytest.raises(
        WeightsError, match=r"global_pool, init_values\.\.\.\), a config\.json beside"
    ):
        load_encoder("timm:vit_tiny_patch16_224", weights=tmp_path / "pooled.pth")
    arguments = {"architecture": "vit_tiny_patch16_224", "model_args": {"global_pool": "avg"}}
    (tmp_path / "config.json").write_text(json.dumps(arguments | {"pretrained_cfg": {}}))
    assert load_encoder("timm:vit_tiny_patch16_224", weights=tmp_path / "pooled.pth").width == 192

    torch.save({"model": model.state_dict(), "when": datetime.date(2026, 1, 1)}, tmp_path / "d.pth")
    with pytest.raises(WeightsError, match=r"\(datetime\.date\).*torch\.save\(model\.state_dict"):
        load_encoder("timm:vit_tiny_patch16_224", weights=tmp_path / "d.pth")


class CraftedArray:
    """Pickles as a call of NumPy that takes these bytes for pointers to objects."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.ndarray, ((1,), np.dtype("O"), b"AAAAAAAA")


def test_numpys_functions_are_not_called_by_a_pickle(tmp_path: Path) -> None:
    state = {"a": torch.ones(2)}
    kinds = (np.float16(1), np.str_("x"), np.arange(3), np.dtype("f4"), CraftedArray())
    torch.save({"model": state, "others": list(kinds)}, tmp_path / "c.pth")
    ((name, tensor),) = read_tensors("x", tmp_path / "c.pth").items()
    assert (name, tensor.tolist()) == ("a", [1.0, 1.0])


def test_a_file_beside_its_configuration_is_its_folder() -> None:
    from encoder_bench.encoders.bundled import bundled_folder

    folder = bundled_folder("tiny-dino")
    twice = [load_encoder("tiny-dino", weights=p) for p in (folder, folder / "model.safetensors")]
    assert twice[0].fingerprint() == twice[1].fingerprint()


def test_a_file_that_no_library_reads_is_refused_with_the_reason(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=r"transformers reads a folder with config\.json"):
        load_encoder("hf:owner/encoder", weights=tmp_path / "own.pth")


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    state = timm_state("vit_tiny_patch16_224")
    halves = [dict(list(state.items())[half::2]) for half in (0, 1)]
    for number, half in enumerate(halves):
        save_file(half, tmp_path / f"model-{number}.safetensors")
    placed = {key: f"model-{n}.safetensors" for n, half in enumerate(halves) for key in half}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    encoder = load_encoder("timm:vit_tiny_patch16_224", weights=tmp_path)
    assert all(torch.equal(v, state[k]) for k, v in encoder.backbone.state_dict().items())
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-1\.safetensors is missing"):
        load_encoder("timm:vit_tiny_patch16_224", weights=tmp_path)


def test_wrappers_are_taken_off_names_only_where_all_have_them() -> None:
    one = torch.ones(1)
    assert encoder_tensors({"module": {"model.a": one, "model.b": one}}) == {"a": one, "b": one}
    assert encoder_tensors({"model.a": one, "b": one}) == {"model.a": one, "b": one}
    assert encoder_tensors({"encoder": {"module.a": one}, "predictor": {"c": one}}) == {"a": one}
    assert encoder_tensors({"module._orig_mod.a": one}) == {"a": one}
    most = {f"model.{name}": one for name in "abcdefghi"}
    assert encoder_tensors(most | {"criterion.weight": one}).keys() == set("abcdefghi")


@pytest.mark.parametrize(
    "averaged",
    [
        {"ema_state_dict": {"a": torch.ones(1)}},
        {"averaged_model": {"module.a": torch.ones(1), "n_averaged": 3}},
        {"ema": {"decay": 0.999, "shadow": {"a": torch.ones(1)}}},
    ],
)
def test_averaged_weights_come_first_under_their_usual_names(averaged: dict[str, Any]) -> None:
    raw = {"model": {"a": torch.zeros(1)}, "optimizer": {"state": {0: {"m": torch.zeros(1)}}}}
    assert encoder_tensors(raw | averaged) == {"a": torch.ones(1)}
    for nothing in (
        {"decay": 0.999},
        {"decay": torch.tensor(0.999)},
        {"deep": {"b": torch.ones(2)}},
    ):
        assert encoder_tensors(raw | {"ema": nothing}) == {"a": torch.zeros(1)}
    library = {
        "ema_model.a": torch.ones(1),
        "online_model.a": torch.zeros(1),
        "step": torch.ones(1),
    }
    assert encoder_tensors(raw | {"ema": library}) == {"a": torch.ones(1)}


class CapturedError(Exception):
    pass


OWN_FORMATS = {"crossvit", "deepseek_vit", "gemma4_vit", "hieradet_sam2", "qwen3_vit", "densenet"}
"""Modules of timm with several renaming functions; their checkpoints are refused, never guessed."""


def test_checkpoints_are_renamed_by_timms_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    seen: dict[str, Any] = {}

    def capture(*_: Any, pretrained_filter_fn: Any = None, **__: Any) -> None:
        raise CapturedError(pretrained_filter_fn)

    names = sorted({name.partition(".")[0] for name in timm.list_pretrained()})
    for name in names:
        module = sys.modules[timm.model_entrypoint(name).__module__]
        if module.__name__.rpartition(".")[2] in OWN_FORMATS:
            continue
        monkeypatch.setattr(module, "build_model_with_cfg", capture, raising=False)
        try:
            timm.model_entrypoint(name)(pretrained=False)
        except CapturedError as found:
            seen[name] = found.args[0]
    assert len(seen) > 500
    for name, theirs in seen.items():
        ours: Any = state_filter(name)
        if theirs is None:
            assert ours({"a": 1}, None) == {"a": 1}, name
            continue
        parts = [
            (f.func, f.keywords) if isinstance(f, partial) else (f, {}) for f in (ours, theirs)
        ]
        kept = [(f, {k: v for k, v in options.items() if v is not None}) for f, options in parts]
        assert kept[0] == kept[1], name


@pytest.mark.parametrize("name", ["beit-b", "data2vec-b"])
def test_beits_own_file_gives_the_features_of_transformers(name: str, tmp_path: Path) -> None:
    from transformers import BeitConfig, BeitModel, Data2VecVisionConfig, Data2VecVisionModel

    kinds = {"beit-b": (BeitConfig, BeitModel)}
    config, model = kinds.get(name, (Data2VecVisionConfig, Data2VecVisionModel))
    torch.manual_seed(0)
    shape = {"use_shared_relative_position_bias": True, "use_mean_pooling": False}
    theirs = model(config(**shape), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    heads = {"lm_head.weight": torch.zeros(9, 768), "mask_token": torch.zeros(1, 1, 768)}
    state = beit_state(theirs.state_dict()) | heads
    torch.save({"model": state, "optimizer": OPTIMIZER}, tmp_path / "checkpoint.pth")
    encoder = load_encoder(name, weights=tmp_path / "checkpoint.pth")
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state[:, 1:]
        assert torch.allclose(encoder(pixels), expected, atol=2e-4)


def beit_state(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return transformers' tensors in the names of BEiT's own code."""
    renamed = {}
    for name, tensor in theirs.items():
        for pattern, own in BEIT_NAMES.items():
            name = re.sub(pattern, own, name)
        renamed[name] = tensor
    for block in range(12):
        parts = [renamed.pop(f"blocks.{block}.attn.{part}.weight") for part in "qkv"]
        renamed[f"blocks.{block}.attn.qkv.weight"] = torch.cat(parts)
    return renamed


BEIT_NAMES = {
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^embeddings\.": "",
    r"^(encoder|shared_position_bias).*(?=relative_position_bias_table)": "rel_pos_bias.",
    r"^(encoder\.)?layers?\.": "blocks.",
    r"lambda_": "gamma_",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"^layernorm": "norm",
    r"attention\.(o_proj|output\.dense)": "attn.proj",
    r"attention\.(attention\.)?([qkv])(_proj|uery|ey|alue)\.bias": r"attn.\2_bias",
    r"attention\.(attention\.)?([qkv])(_proj|uery|ey|alue)\.": r"attn.\2.",
    r"intermediate\.dense": "mlp.fc1",
    r"(?<=\d\.)output\.dense": "mlp.fc2",
}
