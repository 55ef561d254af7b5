"""Activations are computed twice where a recipe asks for it, with the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from encoder_bench.base.errors import RecipeError
from encoder_bench.mllm.trainable import enable_gradient_checkpointing
from encoder_bench.pipeline.build import build_mllm
from encoder_bench.pipeline.plan import make_plan

from .models import pixels, small_mllm


def of_timm() -> tuple[nn.Module, nn.Module, Callable[[nn.Module], Tensor]]:
    model = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
    )
    return model, model.blocks[0].mlp, lambda m: m.forward_features(pixels(2))  # type: ignore[operator]


def of_open_clip() -> tuple[nn.Module, nn.Module, Callable[[nn.Module], Tensor]]:
    model = open_clip.transformer.VisionTransformer(
        image_size=32, patch_size=8, width=32, layers=2, heads=2, mlp_ratio=2.0
    )

    def forward(m: nn.Module) -> Tensor:
        found = m.forward_intermediates(pixels(2), indices=[1], intermediates_only=True)  # type: ignore[operator]
        tokens: Tensor = found["image_intermediates"][0]
        return tokens

    return model, model.transformer.resblocks[0].mlp, forward


@pytest.mark.parametrize("build", [of_timm, of_open_clip])
def test_blocks_of_both_libraries_run_twice(
    build: Callable[[], tuple[nn.Module, nn.Module, Callable[[nn.Module], Tensor]]],
) -> None:
    torch.manual_seed(0)
    model, block, forward = build()
    calls: list[nn.Module] = []
    block.register_forward_pre_hook(lambda module, *_: calls.append(module))
    gradients = []
    for recomputed in (False, True):
        if recomputed:
            enable_gradient_checkpointing(model, key="encoder.gradient_checkpointing")
        model.zero_grad()
        calls.clear()
        forward(model.train()).square().sum().backward()
        assert len(calls) == 1 + recomputed
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, kept)


@pytest.mark.parametrize("encoder", ["tiny-deit", "tiny-clip+tiny-siglip"])
def test_a_tuned_encoder_recomputes_by_recipe(encoder: str, tmp_path: Path) -> None:
    counts = []
    for recomputed in (False, True):
        settings = {"encoder.gradient_checkpointing": recomputed, "encoder.layer": -1}
        plan = make_plan(encoder=encoder, joint=True, settings=settings, results=tmp_path)
        mllm = build_mllm(plan).train()
        calls: list[int] = []
        for module in mllm.encoder.modules():
            if type(module).__name__.endswith("MLP"):
                module.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        height, width = mllm.encoder.resolution
        mllm.features(torch.zeros(1, 3, height, width)).sum().backward()
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0] > 0


def test_a_model_that_cannot_is_named() -> None:
    with pytest.raises(RecipeError, match=r"gradient_checkpointing: a Linear cannot"):
        enable_gradient_checkpointing(
            nn.Sequential(nn.Linear(2, 2)), key="encoder.gradient_checkpointing"
        )


def test_a_frozen_llm_that_recomputes_has_no_dropout() -> None:
    config = OPTConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32,
        word_embed_proj_dim=16, max_position_embeddings=32, dropout=0.5,
    )  # fmt: skip
    mllm = small_mllm()
    mllm.language.model = OPTForCausalLM(config).requires_grad_(False)
    mllm.language.model.gradient_checkpointing_enable()
    mllm.train()
    ids = torch.arange(8)[None]
    assert torch.equal(mllm.language.model(ids).logits, mllm.language.model(ids).logits)
    mllm.language.model.requires_grad_(True)  # a later stage trains it, with its own dropout
    mllm.train()
    assert not torch.equal(mllm.language.model(ids).logits, mllm.language.model(ids).logits)
