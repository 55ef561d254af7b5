"""Parameter groups, the schedule and the order of samples; and that adapters/README.md is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

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
from encoder_bench.training.batches import StageOrder
from encoder_bench.training.optimizer import make_optimizer, schedule
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
