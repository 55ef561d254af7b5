"""Objectives by name: the family's ViT, and what its objective needs around it."""

from __future__ import annotations

from typing import Any, Literal

import torch

from encoder_bench.base.errors import UnknownNameError
from zoo.objective import Objective

ObjectiveName = Literal["deit", "clip", "siglip", "mae", "dino", "dinov2"]
OBJECTIVES: tuple[ObjectiveName, ...] = ("deit", "clip", "siglip", "mae", "dino", "dinov2")
SUPERVISION: dict[ObjectiveName, str] = {
    "deit": "fully",
    "clip": "weakly",
    "siglip": "weakly",
    "mae": "self",
    "dino": "self",
    "dinov2": "self",
}
IMAGE_SIDE, PATCH = 72, 12
CAPTION_TOKENS = 40
TEXT_LAYERS = 2


def build_objective(name: str, *, classes: int, vocabulary: int, eos: int, seed: int) -> Objective:
    """Return an objective with seeded weights, leaving torch's generator as it was.

    Args:
        name: one of `OBJECTIVES`.
        classes: labels per image (DeiT).
        vocabulary: caption tokens (CLIP, SigLIP).
        eos: id that ends a caption (CLIP reads there).
        seed: of all initial weights.

    Raises:
        UnknownNameError: not an objective.
    """
    if name not in OBJECTIVES:
        raise UnknownNameError("objective", name, OBJECTIVES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(name, classes, vocabulary, eos)


def _build(name: str, classes: int, vocabulary: int, eos: int) -> Objective:
    from zoo.clip import ClipObjective
    from zoo.deit import DeitObjective
    from zoo.dino import DinoObjective
    from zoo.dinov2 import Dinov2Objective
    from zoo.mae import MaeObjective
    from zoo.siglip import SiglipObjective

    encoder = build_encoder(name)
    if name == "deit":
        return DeitObjective(encoder, classes=classes)
    if name == "clip":
        return ClipObjective(encoder, _clip_text_tower(encoder, vocabulary, eos))
    if name == "siglip":
        return SiglipObjective(encoder, _siglip_text_tower(encoder, vocabulary, eos))
    if name == "mae":
        return MaeObjective(encoder)
    return DinoObjective(encoder) if name == "dino" else Dinov2Objective(encoder)


def build_encoder(name: str) -> Any:
    """Return the family's own transformers model with fresh weights; MAE's with its decoder.

    DeiT's is the plain ViT, as in DeiT III. Weights begin as wide as 1 / sqrt(128): at a large
    model's 0.02 so narrow a one does next to nothing for hundreds of steps. Attention is computed
    step by step: on a CPU the fused kernel's backward pass takes three times as long.
    """
    import transformers

    shape = {
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIDE,
        "patch_size": PATCH,
        "initializer_range": 0.08,
        "attn_implementation": "eager",
    }
    wide = shape | {"intermediate_size": 512}
    if name == "clip":
        return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**wide))
    if name == "siglip":
        return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**wide))
    if name == "mae":
        config = transformers.ViTMAEConfig(
            **wide,
            mask_ratio=0.6,
            norm_pix_loss=True,
            decoder_hidden_size=64,
            decoder_intermediate_size=256,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
        )
        return transformers.ViTMAEForPreTraining(config)
    if name == "dinov2":
        return transformers.Dinov2Model(transformers.Dinov2Config(**shape, mlp_ratio=4))
    return transformers.ViTModel(transformers.ViTConfig(**wide), add_pooling_layer=False)


def _text_shape(encoder: Any, vocabulary: int, eos: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": encoder.config.hidden_size,
        "intermediate_size": 4 * encoder.config.hidden_size,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": encoder.config.num_attention_heads,
        "max_position_embeddings": CAPTION_TOKENS,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": eos,
        "attn_implementation": "eager",
    }


def _clip_text_tower(encoder: Any, vocabulary: int, eos: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**_text_shape(encoder, vocabulary, eos)))


def _siglip_text_tower(encoder: Any, vocabulary: int, eos: int) -> Any:
    from transformers import SiglipTextConfig, SiglipTextModel

    shape = _text_shape(encoder, vocabulary, eos)
    return SiglipTextModel(SiglipTextConfig(**shape, projection_size=encoder.config.hidden_size))
