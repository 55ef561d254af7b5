"""FlexAttention sees what the dense mask shows, and is used only where it can train."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from encoder_bench.base.errors import TrainingError
from encoder_bench.mllm import attention
from encoder_bench.mllm.attention import FLEX, training_attention, trains_with_flex
from encoder_bench.mllm.packing import PackedRows, pack

from .models import make_batch, pixels, small_language, small_mllm
from .test_packing import DIALOGUES, gradients

CPU = torch.device("cpu")


def rows(*, shared: bool = True) -> PackedRows:
    language = small_language()
    batch = make_batch(language, DIALOGUES, shared_prefix=shared, row_length=500, pixels=pixels(3))
    return pack(batch, language, visual_tokens=16)


def test_the_block_mask_shows_what_the_dense_mask_shows() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    packed = rows()
    query, key, value = torch.randn(
        (3, len(packed.dialogue), 2, packed.dialogue.shape[1], 16),
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        found = flex_attention(query, key, value, block_mask=packed.mask(flex=True))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=packed.mask())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    causal = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert (found - causal).abs().max() > 0.1


def test_the_library_hands_the_block_mask_to_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: without gradients, and with the kernel as it is before compilation."""
    from torch.nn.attention.flex_attention import flex_attention
    from transformers.integrations import flex_attention as library

    def uncompiled(*inputs: torch.Tensor, training: bool, **options: object) -> torch.Tensor:
        output: torch.Tensor = flex_attention(*inputs, **options)  # type: ignore[arg-type]
        return output

    monkeypatch.setattr(library, "compile_friendly_flex_attention", uncompiled)
    mllm = small_mllm()
    batch = make_batch(
        mllm.language, DIALOGUES, shared_prefix=True, row_length=500, pixels=pixels(3)
    )
    with torch.no_grad():
        expected, _ = mllm.logits(batch)
        mllm.language.model.set_attn_implementation(FLEX)
        found, _ = mllm.logits(batch)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_plain_rows_need_no_mask() -> None:
    assert rows(shared=False).mask(flex=True) is None


def test_outside_gpus_training_keeps_sdpa() -> None:
    language = small_language()
    assert not trains_with_flex(language, CPU)
    for wanted in ("auto", "sdpa"):
        with training_attention(language, CPU, wanted) as used:  # type: ignore[arg-type]
            assert used == language.attention == "sdpa"
    with pytest.raises(TrainingError, match="does not train tiny-llama on cpu"):
        training_attention(language, CPU, FLEX).__enter__()


def test_attention_is_switched_for_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "trains_with_flex", lambda *_: True)
    language = small_language()
    for wanted in ("auto", "sdpa"):
        with training_attention(language, CPU, wanted) as used:  # type: ignore[arg-type]
            assert used == language.attention == "sdpa"
    with training_attention(language, CPU, FLEX) as used:
        assert used == language.attention == FLEX
        assert language.keeps_questions_apart
    assert language.attention == "sdpa"


def test_a_kernel_that_fails_or_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> float:
        raise RuntimeError("no compiler")

    cuda, language = torch.device("cuda"), small_language()
    monkeypatch.setattr(attention, "_difference_from_sdpa", failing)
    assert not trains_with_flex(language, cuda)
    monkeypatch.setattr(attention, "_difference_from_sdpa", lambda *_, **__: 0.5)
    assert not trains_with_flex(language, cuda)
    monkeypatch.setattr(attention, "_difference_from_sdpa", lambda *_, **__: float("nan"))
    assert not trains_with_flex(language, cuda)
    monkeypatch.setattr(attention, "_difference_from_sdpa", lambda *_, **__: 1e-4)
    assert trains_with_flex(language, cuda)
    monkeypatch.setattr(type(language), "keeps_questions_apart", False)
    assert not trains_with_flex(language, cuda)


@pytest.mark.gpu
def test_packed_rows_train_as_separate_sequences_under_flex_attention() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    device = torch.device("cuda")
    mllm = small_mllm().to(device)
    items = make_batch(mllm.language, DIALOGUES, shared_prefix=False, pixels=pixels(3)).to(device)
    packed = make_batch(
        mllm.language, DIALOGUES, shared_prefix=True, row_length=500, pixels=pixels(3)
    ).to(device)
    assert trains_with_flex(mllm.language, device)
    separate, expected = gradients(mllm, items)
    with training_attention(mllm.language, device, FLEX) as used:
        assert used == FLEX
        shared, found = gradients(mllm, packed)
    assert shared == pytest.approx(separate, rel=1e-3)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-3, rtol=1e-2)


def test_short_rows_train_by_plain_products_in_bfloat16_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    language, packed = small_language(), rows()
    used = []

    def flags() -> bool:
        with attention.training_kernel(packed, language):
            return not torch.backends.cuda.flash_sdp_enabled()

    used.append(flags())
    with torch.autocast("cpu", torch.bfloat16):
        used.append(flags())
        with torch.no_grad():
            used.append(flags())
        monkeypatch.setattr(attention, "MAX_SHORT_ROW", 8)
        used.append(flags())
    assert used == [False, True, False, False]


def test_both_kernels_give_the_loss_and_gradients_of_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = make_batch(small_language(), DIALOGUES, shared_prefix=True, pixels=pixels(3))
    found = []
    for limit in (320, 0):
        monkeypatch.setattr(attention, "MAX_SHORT_ROW", limit)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(gradients(small_mllm(), batch))
    (loss, first), (expected, second) = found
    assert loss == pytest.approx(expected, rel=1e-2)
    for name, gradient in first.items():
        scale = second[name].abs().max().clamp_min(1e-3)
        assert (gradient - second[name]).abs().max() / scale < 0.15, name
