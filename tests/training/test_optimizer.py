"""Parameter groups, the schedule and the order of samples; and that adapters/README.md is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from encoder_bench.base.recipes import (
    AdapterRecipe,
    EncoderSettings,
    LanguageModelSettings,
    LoraSettings,
    PartOptimizer,
    ProjectorSettings,
    StageSettings,
    TrainingSettings,
    recipe_folder,
)
from encoder_bench.data.sample_table import ImageGroups
from encoder_bench.mllm.model import MLLM
from encoder_bench.training.batches import StageOrder
from encoder_bench.training.checkpoint import optimizer_state, restore_optimizer
from encoder_bench.training.optimizer import decays, make_optimizer, schedule, set_learning_rates
from tests.training.world import model, questions, recipe


def test_no_decay_on_biases_and_norms_and_smaller_rates_further_down() -> None:
    mllm = model(joint=True)
    optimizer = make_optimizer(mllm, recipe().stages[0])
    names = {id(p): name for name, p in mllm.encoder.named_parameters()}
    peaks = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == 0 or parameter.ndim > 1
            if group["part"] == "encoder":
                peaks[names[id(parameter)]] = group["peak"]
    by_block = {depth: {v for k, v in peaks.items() if f".{depth}." in k} for depth in (0, 1)}
    assert list(by_block[1]) == pytest.approx([1e-3 * 0.9])
    assert list(by_block[0]) == pytest.approx([1e-3 * 0.9**2])


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("vit_tiny_patch16_224", 12),
        ("resnet18", 8),
        ("efficientnet_b0", 16),
        ("regnety_002", 13),
        ("densenet121", 6 + 12 + 24 + 16),
        ("convnext_tiny", 3 + 3 + 9 + 3 + 3),  # and three reductions between stages
        ("swin_tiny_patch4_window7_224", 2 + 2 + 6 + 2 + 3),
        ("pvt_v2_b0", 4 * 2 + 4),
        ("davit_tiny", 1 + 1 + 3 + 1 + 3),
    ],
)
def test_layer_wise_decay_counts_blocks_through_all_stages(name: str, levels: int) -> None:
    import timm

    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    names = [f"backbone.{each}" for each, _ in model.named_parameters()]
    powers = decays(names)
    falling = list(powers.values())
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == levels + 1
    assert set(falling) >= {*range(1, levels + 2)}
    both = [f"backbone.{place}.{each}" for place in (0, 1) for each in names]
    shallow = decays([*both, *(f"backbone.2.backbone.blocks.{i}.w" for i in (0, 1))])
    assert [shallow[each] for each in both] == 2 * falling
    assert list(shallow.values())[-2:] == [2, 1]


@pytest.mark.parametrize("kind", ["ConvNext", "Swin", "CLIPVision", "Dinov2", "ResNet"])
def test_layer_wise_decay_falls_from_the_image_to_the_last_block(kind: str) -> None:
    import transformers

    with torch.device("meta"):
        config = getattr(transformers, f"{kind}Config")()
        backbone = transformers.AutoModel.from_config(config)
    falling = list(decays([f"backbone.{n}" for n, _ in backbone.named_parameters()]).values())
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > 12
    assert 1 in falling


def muon_recipe() -> AdapterRecipe:
    part = {"learning_rate": 1e-3, "optimizer": "muon", "weight_decay": 0.1}
    return recipe(stage={"projector": part})


def take_steps(mllm: MLLM, optimizer: torch.optim.Optimizer, *seeds: int) -> None:
    set_learning_rates(optimizer, 1.0)
    for seed in seeds:
        random = torch.Generator().manual_seed(seed)
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = torch.randn(parameter.shape, generator=random)
        optimizer.step()


def test_muon_moves_matrices_as_torch_does_at_adamws_scale_and_leaves_biases_to_adamw() -> None:
    mllm = model(joint=True)
    before = {name: p.detach().clone() for name, p in mllm.projector.named_parameters()}
    optimizer = make_optimizer(mllm, muon_recipe().stages[0])
    take_steps(mllm, optimizer, 1)
    moved = {name: before[name] - p.detach() for name, p in mllm.projector.named_parameters()}
    matrices = [name for name, p in mllm.projector.named_parameters() if p.ndim == 2]
    assert 0 < len(matrices) < len(moved)
    for name, p in mllm.projector.named_parameters():
        if p.ndim == 2:
            alone = torch.nn.Parameter(before[name].clone())
            alone.grad = p.grad
            torch.optim.Muon(
                [alone], lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
            ).step()
            assert torch.equal(p, alone)
            singular = torch.linalg.svdvals(moved[name] - 1e-4 * before[name])
            assert singular.max() < 2 * singular.quantile(0.1)  # of the gradient itself: 12 times
            rms = (moved[name] - 1e-4 * before[name]).square().mean().sqrt()
            assert rms == pytest.approx(2e-4, rel=0.3)  # AdamW's is 0.2 to 0.4 of its rate
        else:
            torch.testing.assert_close(moved[name], 1e-3 * p.grad.sign(), rtol=1e-3, atol=0)


def test_the_state_of_both_optimizers_is_kept(tmp_path: Path) -> None:
    def fresh() -> tuple[MLLM, torch.optim.Optimizer]:
        torch.manual_seed(0)
        mllm = model(joint=True)
        return mllm, make_optimizer(mllm, muon_recipe().stages[0])

    (whole, optimizer), (resumed, restored) = fresh(), fresh()
    take_steps(whole, optimizer, 1, 2)
    weights = {name: value.clone() for name, value in whole.state_dict().items()}
    state = optimizer_state(optimizer)
    assert {key.partition("/")[2] for key in state} == {
        *("step", "exp_avg", "exp_avg_sq", "momentum_buffer"),
    }
    resumed.load_state_dict(weights)
    save_file(state, tmp_path / "optimizer.safetensors")
    restore_optimizer(restored, tmp_path)
    for mllm, each in ((whole, optimizer), (resumed, restored)):
        take_steps(mllm, each, 3)
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


def test_schedule_warms_up_then_falls_to_its_floor() -> None:
    stage = recipe(stage={"warmup_fraction": 0.1, "final_learning_rate_fraction": 0.2}).stages[0]
    factors = [schedule(step, 100, stage) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.2, abs=1e-3)


def test_order_is_a_function_of_the_step_and_each_epoch_sees_every_image_once() -> None:
    groups = ImageGroups(questions([Path(f"{i}.png") for i in range(7)]), ["vqa", "captioning"])

    def order() -> StageOrder:
        return StageOrder(groups, stage="0", seed=1, images_per_step=3, samples_per_image=2)

    whole = order()
    visits = [image for step in range(7) for image in whole.step(step)]
    for epoch in range(3):
        assert len({image[0].image_id for image in visits[epoch * 7 : epoch * 7 + 7]}) == 7
    assert order().step(5) == visits[15:18]
    assert all({s.task for s in image} == {"vqa", "captioning"} for image in visits)


@pytest.mark.parametrize(
    "settings",
    [
        AdapterRecipe,
        EncoderSettings,
        ProjectorSettings,
        LanguageModelSettings,
        LoraSettings,
        TrainingSettings,
        StageSettings,
        PartOptimizer,
    ],
)
def test_the_readme_explains_every_key(settings: type[BaseModel]) -> None:
    text = (recipe_folder("adapters") / "README.md").read_text(encoding="utf-8")
    tables = {"encoder", "projector", "llm", "lora", "training", "stages"}
    missing = [k for k in settings.model_fields if k not in tables and f"| `{k}` |" not in text]
    assert missing == []
