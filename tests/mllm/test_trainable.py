"""What is frozen stays so to the bit, what trains moves, and lies about either are caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import nn

from encoder_bench.base.errors import ProofError, RecipeError
from encoder_bench.base.recipes import LanguageModelSettings, LoraSettings, ProjectorSettings
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.mllm.dialogue import ImageDialogue
from encoder_bench.mllm.loading import load_language_model
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.projectors import build_projector
from encoder_bench.mllm.trainable import add_lora, prove, set_trainable, snapshot

from .models import make_batch, pixels, small_language, small_mllm

Llm = Literal["frozen", "lora", "full"]


def one_step(mllm: MLLM) -> None:
    mllm.train()
    trained = [p for p in mllm.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    batch = make_batch(
        mllm.language,
        [ImageDialogue(1, (("What?", "a dog"), ("Red?", "No.")))],
        shared_prefix=True,
        pixels=pixels(1),
    )
    for _ in range(2):  # LoRA's second factor is zero at first, so its first moves one step later
        optimizer.zero_grad()
        (mllm(batch) / batch.answer_tokens).backward()
        optimizer.step()


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("llm", ["frozen", "lora", "full"])
def test_exactly_what_should_train_trains(joint: bool, llm: Llm) -> None:
    mllm = small_mllm(dropout=0.5)
    set_trainable(mllm, encoder=joint, llm=llm)
    before = snapshot(mllm)
    one_step(mllm)
    should = {"encoder": joint, "projector": True, "llm": llm != "frozen"}
    proof = prove(mllm, before, should_train=should, gradient_norms={"projector": (1.5, 0.5)})
    for name, part in proof.items():
        assert part.should_train == should[name]
        assert (part.relative_change > 0) == should[name]
        assert (part.sha256_before != part.sha256_after) == should[name]
        assert (part.trainable_parameters > 0) == should[name]
    assert proof["projector"].first_gradient_norm == 1.5
    assert proof["llm"].last_gradient_norm is None
    if llm == "lora":
        assert proof["llm"].trainable_parameters < proof["llm"].parameters


def test_relative_change_is_the_norm_ratio() -> None:
    mllm = small_mllm()
    set_trainable(mllm, encoder=False, llm="frozen")
    before = snapshot(mllm)
    with torch.no_grad():
        for parameter in mllm.projector.parameters():
            parameter.mul_(1.25)
    should = {"encoder": False, "projector": True, "llm": False}
    proof = prove(mllm, before, should_train=should)
    assert proof["projector"].relative_change == pytest.approx(0.25, rel=1e-6)


def flip_last_bit(parameter: nn.Parameter) -> None:
    parameter.data.view(-1)[:1].view(torch.int32).bitwise_xor_(1)


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_one_bit_of_a_frozen_part_fails_the_run(part: str) -> None:
    mllm = small_mllm()
    set_trainable(mllm, encoder=False, llm="frozen")
    before = snapshot(mllm)
    one_step(mllm)
    name, parameter = next(iter(mllm.parts()[part].named_parameters()))
    flip_last_bit(parameter)
    should = {"encoder": False, "projector": True, "llm": False}
    with pytest.raises(ProofError, match=f"{part}: frozen weights changed in training: {name}"):
        prove(mllm, before, should_train=should)


def test_one_bit_of_the_frozen_weights_under_lora_fails_the_run() -> None:
    mllm = small_mllm()
    set_trainable(mllm, encoder=False, llm="lora")
    before = snapshot(mllm)
    one_step(mllm)
    flip_last_bit(mllm.language.model.get_input_embeddings().weight)
    should = {"encoder": False, "projector": True, "llm": True}
    with pytest.raises(ProofError, match="llm: frozen weights changed"):
        prove(mllm, before, should_train=should)


def disconnect_encoder(mllm: MLLM) -> None:
    """The failure of rivals: features without a graph, so that 'unfrozen' never trains."""
    encode = mllm.features
    mllm.features = lambda pixels: encode(pixels).detach()  # type: ignore[method-assign]


def freeze_encoder_unasked(mllm: MLLM) -> None:
    mllm.encoder.requires_grad_(False)


@pytest.mark.parametrize("sabotage", [disconnect_encoder, freeze_encoder_unasked])
def test_a_joint_run_whose_encoder_does_not_move_fails(sabotage: Callable[[MLLM], None]) -> None:
    mllm = small_mllm()
    set_trainable(mllm, encoder=True, llm="frozen")
    sabotage(mllm)
    before = snapshot(mllm)
    one_step(mllm)
    should = {"encoder": True, "projector": True, "llm": False}
    with pytest.raises(ProofError, match="encoder: should train, yet"):
        prove(mllm, before, should_train=should)


def test_a_part_that_may_train_unasked_fails_the_run() -> None:
    mllm = small_mllm()
    set_trainable(mllm, encoder=True, llm="frozen")
    before = snapshot(mllm)
    should = {"encoder": False, "projector": True, "llm": False}
    with pytest.raises(ProofError, match="encoder: should be frozen, yet may train"):
        prove(mllm, before, should_train=should)


def test_frozen_parts_stay_in_eval_mode_and_without_gradients() -> None:
    mllm = small_mllm(dropout=0.5)
    set_trainable(mllm, encoder=False, llm="frozen")
    mllm.train()
    assert not any(module.training for module in mllm.encoder.modules())
    assert not any(module.training for module in mllm.language.model.modules())
    assert mllm.projector.training
    assert torch.equal(mllm.features(pixels(1)), mllm.features(pixels(1)))
    one_step(mllm)
    assert all(p.grad is None for p in mllm.encoder.parameters())
    assert all(p.grad is None for p in mllm.language.parameters())


def test_a_joint_encoder_trains_with_its_dropout_and_a_graph() -> None:
    mllm = small_mllm(dropout=0.5)
    set_trainable(mllm, encoder=True, llm="frozen")
    mllm.train()
    assert mllm.features(pixels(1)).requires_grad
    assert not torch.equal(mllm.features(pixels(1)), mllm.features(pixels(1)))
    set_trainable(mllm, encoder=False, llm="frozen")
    assert not mllm.features(pixels(1)).requires_grad
    assert not any(module.training for module in mllm.encoder.modules())


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_a_tuned_batch_norm_keeps_the_checkpoints_statistics(name: str) -> None:
    """Those of a micro-batch would make a step depend on how it was cut into micro-batches."""
    encoder = load_encoder(f"random:timm:{name}", resolution=64)
    language = small_language()
    projector = build_projector(
        ProjectorSettings(), grid=encoder.grid, width=encoder.width, llm_width=language.width
    )
    mllm = MLLM(encoder, projector, language)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    statistics = {n: b.clone() for n, b in encoder.named_buffers()}
    set_trainable(mllm, encoder=True, llm="frozen")
    mllm.train()
    assert norms
    assert encoder.training
    images = torch.randn(3, 3, *encoder.resolution, generator=torch.Generator().manual_seed(0))
    together = mllm.features(images)
    assert torch.allclose(together[:1], mllm.features(images[:1]), atol=1e-5)
    together.square().mean().backward()
    assert all(norm.weight.grad is not None for norm in norms)
    assert all(torch.equal(b, statistics[n]) for n, b in encoder.named_buffers())


def test_lora_is_confined_to_the_language_model() -> None:
    mllm = small_mllm(language=small_language(lora=LoraSettings(rank=4, dropout=0.5)))
    names = {part: set(module.state_dict()) for part, module in mllm.parts().items()}
    set_trainable(mllm, encoder=True, llm="lora")
    assert set(mllm.encoder.state_dict()) == names["encoder"]
    assert set(mllm.projector.state_dict()) == names["projector"]
    trained = [n for n, p in mllm.language.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 4  # two factors, seven linear maps a layer, four layers
    assert all(".lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    mllm.train()
    training = {name for name, m in mllm.language.model.named_modules() if m.training}
    assert training
    assert all("lora_" in name for name in training)


def test_lora_in_the_encoder_is_refused() -> None:
    mllm = small_mllm()
    add_lora(mllm.encoder.backbone, LoraSettings(target_modules=("q_proj", "query")))
    with pytest.raises(ProofError, match="encoder: a LoRA adapter is outside the LLM"):
        set_trainable(mllm, encoder=False, llm="frozen")


def test_lora_targets_that_name_nothing_are_a_recipe_error() -> None:
    language = small_language(lora=LoraSettings(target_modules=("query_proj",)))
    with pytest.raises(RecipeError, match="query_proj"):
        set_trainable(small_mllm(language=language), encoder=False, llm="lora")


def test_checkpointing_recomputes_in_a_frozen_model_with_equal_gradients() -> None:
    def gradient(checkpointing: bool) -> torch.Tensor:
        settings = LanguageModelSettings(gradient_checkpointing=checkpointing)
        mllm = small_mllm(language=load_language_model(settings))
        set_trainable(mllm, encoder=False, llm="frozen")
        mllm.train()
        one_step(mllm)
        layer = mllm.language.model.model.layers[0]
        assert layer.training == checkpointing
        assert not layer.self_attn.training
        return next(mllm.projector.parameters()).grad.clone()

    torch.testing.assert_close(gradient(True), gradient(False))
