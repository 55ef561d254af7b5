"""Checkpoints as they are published: with heads, text towers and decoders around the encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from encoder_bench.base.errors import WeightsError
from encoder_bench.encoders.bundled import tiny_processor
from encoder_bench.encoders.registry import load_encoder

BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT: dict[str, Any] = BLOCKS | {"intermediate_size": 64, "image_size": 64, "patch_size": 8}
DINOV2: dict[str, Any] = BLOCKS | {"mlp_ratio": 2, "image_size": 64, "patch_size": 8}
TEXT = BLOCKS | {
    "intermediate_size": 32, "vocab_size": 6, "max_position_embeddings": 8, "bos_token_id": 2,
    "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
SWIN: dict[str, Any] = {
    "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "window_size": 4,
    "image_size": 64, "patch_size": 4,
}  # fmt: skip
DECODER = {
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}  # fmt: skip
SHARED = {"use_shared_relative_position_bias": True, "use_mask_token": True}
OWN = {"use_relative_position_bias": True}

PUBLISHED: dict[str, Callable[[], Any]] = {
    "ViT classifier": lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)),
    "ViT with a pooler": lambda: hf.ViTModel(hf.ViTConfig(**VIT)),
    "ViT for masked images": lambda: hf.ViTForMaskedImageModeling(
        hf.ViTConfig(**VIT, encoder_stride=8)
    ),
    "DeiT distilled": lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**VIT)),
    "MAE with its decoder": lambda: hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**VIT, **DECODER)),
    "BEiT for masked images": lambda: hf.BeitForMaskedImageModeling(
        hf.BeitConfig(**VIT, **SHARED, vocab_size=10)
    ),
    "BEiT classifier": lambda: hf.BeitForImageClassification(hf.BeitConfig(**VIT, **OWN)),
    "data2vec pretrained": lambda: hf.Data2VecVisionModel(
        hf.Data2VecVisionConfig(
            **VIT, use_shared_relative_position_bias=True, use_mean_pooling=False
        )
    ),
    "data2vec classifier": lambda: hf.Data2VecVisionForImageClassification(
        hf.Data2VecVisionConfig(**VIT, **OWN)
    ),
    "CLIP": lambda: hf.CLIPModel(
        hf.CLIPConfig(text_config=TEXT, vision_config=VIT, projection_dim=16)
    ),
    "CLIP vision with projection": lambda: hf.CLIPVisionModelWithProjection(
        hf.CLIPVisionConfig(**VIT, projection_dim=16)
    ),
    "SigLIP": lambda: hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VIT)),
    "AIMv2": lambda: hf.Aimv2Model(hf.Aimv2Config(text_config=TEXT, vision_config=VIT)),
    "DINOv2 classifier": lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**DINOV2)),
    "DINOv2 with registers classifier": lambda: hf.Dinov2WithRegistersForImageClassification(
        hf.Dinov2WithRegistersConfig(**DINOV2)
    ),
    "I-JEPA classifier": lambda: hf.IJepaForImageClassification(hf.IJepaConfig(**VIT)),
    "MSN classifier": lambda: hf.ViTMSNForImageClassification(hf.ViTMSNConfig(**VIT)),
    "Swin classifier": lambda: hf.SwinForImageClassification(hf.SwinConfig(**SWIN)),
    "Swin for masked images": lambda: hf.SwinForMaskedImageModeling(
        hf.SwinConfig(**SWIN, encoder_stride=16)
    ),
}


def publish(model: Any, folder: Path) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tiny_processor(64).save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_loads_whole(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = publish(PUBLISHED[name](), tmp_path)
    encoder = load_encoder(f"dir:{tmp_path}")
    kept = {tensor.data_ptr(): tensor for tensor in encoder.backbone.state_dict().values()}
    values = list(published.state_dict().values())
    for tensor in kept.values():  # every number of the encoder is one of the checkpoint's
        assert any(v.shape == tensor.shape and torch.equal(v, tensor) for v in values)
    tokens = encoder(torch.randn(1, 3, *encoder.resolution))
    assert tokens.shape == (1, encoder.num_tokens, encoder.width)


def test_beits_final_norm_comes_from_its_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = publish(PUBLISHED["BEiT for masked images"](), tmp_path)
    encoder = load_encoder(f"dir:{tmp_path}")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = published.beit(pixels).last_hidden_state
        expected = published.layernorm(before)[:, 1:]
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)
    assert not torch.allclose(before[:, 1:], expected, atol=1e-2)


def test_clips_patch_tokens_are_those_of_the_whole_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = publish(PUBLISHED["CLIP"](), tmp_path)
    encoder = load_encoder(f"dir:{tmp_path}")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        tower = published.vision_model
        expected = tower.post_layernorm(tower(pixels).last_hidden_state)[:, 1:]
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)


def test_a_text_model_is_no_encoder(tmp_path: Path) -> None:
    publish(hf.CLIPTextModel(hf.CLIPTextConfig(**TEXT)), tmp_path)
    with pytest.raises(Exception, match="unknown vision architecture 'clip_text_model'"):
        load_encoder(f"dir:{tmp_path}")


def test_a_tower_with_a_foreign_part_is_refused(tmp_path: Path) -> None:
    published = hf.ViTForImageClassification(hf.ViTConfig(**VIT))
    published.vit.extra = torch.nn.Linear(2, 2)
    publish(published, tmp_path)
    with pytest.raises(WeightsError, match=r"does not have, the first vit\.extra\.bias"):
        load_encoder(f"dir:{tmp_path}")
