"""The estimate of memory against what autograd in fact keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from encoder_bench.base.recipes import LanguageModelSettings, LoraSettings
from encoder_bench.mllm.loading import count_parameters
from encoder_bench.mllm.memory import activation_bytes, estimate
from encoder_bench.mllm.trainable import set_trainable

from .models import small_language, small_mllm


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_that_autograd_keeps(
    trained: bool, masked: bool, dtype: torch.dtype
) -> None:
    model = small_language().model.to(dtype).requires_grad_(trained)
    rows, length = 3, 80
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    embeddings = torch.randn(rows, length, 192, dtype=dtype, requires_grad=True)
    mask = torch.ones(rows, 1, length, length, dtype=torch.bool).tril() if masked else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False)
    estimated = activation_bytes(
        model.config,
        rows=rows,
        length=length,
        size=dtype.itemsize,
        trained=trained,
        masked=masked,
        recomputed=False,
    )
    assert estimated == pytest.approx(sum(kept.values()), rel=0.06)


def test_adapters_are_counted_as_peft_makes_them(tmp_path: Path) -> None:
    lora = LoraSettings(rank=4)
    mllm = small_mllm(language=small_language(lora=lora))
    set_trainable(mllm, encoder=False, llm="lora")
    trained = sum(p.numel() for p in mllm.language.model.parameters() if p.requires_grad)
    mllm.language.model.config.save_pretrained(tmp_path)
    settings = LanguageModelSettings(name=str(tmp_path), train="lora", lora=lora)
    found = estimate(settings, images=1, questions_per_image=1, visual_tokens=4)
    assert found is not None
    assert found.optimizer == 12 * trained


def test_weights_are_counted_in_their_dtype() -> None:
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        settings = LanguageModelSettings(name="tiny-llama", dtype=dtype, train="full")
        found = estimate(settings, images=2, questions_per_image=3, visual_tokens=16)
        count = count_parameters(settings.name)
        assert found is not None
        assert count is not None
        assert found.weights == size * count
        assert found.optimizer == 12 * count


def test_a_shared_prefix_and_recomputation_need_less() -> None:
    plain = LanguageModelSettings(name="tiny-llama")
    sizes = [
        estimate(
            settings,
            images=4,
            questions_per_image=5,
            visual_tokens=64,
            shared_prefix=shared,
        )
        for settings, shared in (
            (plain, False),
            (plain, True),
            (plain.model_copy(update={"gradient_checkpointing": True}), True),
        )
    ]
    separate, shared, recomputed = [size.activations for size in sizes if size is not None]
    assert separate > shared > recomputed


def test_without_a_configuration_there_is_no_estimate() -> None:
    settings = LanguageModelSettings(name="nobody/nothing-of-the-kind")
    assert estimate(settings, images=1, questions_per_image=1, visual_tokens=4) is None
