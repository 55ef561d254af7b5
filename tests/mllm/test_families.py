"""Other families of causal LMs: the same guarantees, or the slow way that keeps them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from encoder_bench.base.errors import WeightsError
from encoder_bench.base.recipes import DecodingSettings, LanguageModelSettings
from encoder_bench.mllm.generate import answer, generate
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.model import MLLM
from encoder_bench.pipeline import build
from encoder_bench.pipeline.plan import make_plan

from .models import byte_tokenizer, make_batch, pixels, small_mllm
from .test_generation import PROMPTS, plain_answer, visual_of
from .test_packing import DIALOGUES

_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": _SHAPE,
    "qwen3": _SHAPE,
    "gemma2": _SHAPE,  # soft-capped logits, scaled embeddings, every second layer slides
    "gemma3_text": _SHAPE,
    "phi": _SHAPE,
    "mistral": {**_SHAPE, "sliding_window": 24},  # narrower than any prompt here
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["global", "local", "local"], 1]],
        "window_size": 24,
        "max_position_embeddings": 512,
    },
    "falcon": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": True},
    "gemma4_text": {  # heads of two widths
        **_SHAPE,
        "num_hidden_layers": 6,
        "global_head_dim": 32,
        "sliding_window": 24,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
    },
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8},  # no keys and values
}


NOT_SHARED = {"mistral", "mamba", "gpt_neo", "falcon", "gemma4_text"}
"""Whose windows, recurrent state or distances a shared row would change."""


def family(name: str, **changed: Any) -> MLLM:
    tokenizer = byte_tokenizer()
    config = CONFIG_MAPPING[name](
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **FAMILIES.get(name, _SHAPE) | changed,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    settings = LanguageModelSettings(chat_template=False)
    return small_mllm(language=LanguageModel(model, tokenizer, settings, source=name))


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_behind_a_shared_prefix(name: str) -> None:
    mllm = family(name)
    losses = {}
    for shared in (False, True):
        batch = make_batch(
            mllm.language, DIALOGUES, shared_prefix=shared, pixels=pixels(len(DIALOGUES))
        )
        assert batch.shared_prefix == (shared and name not in NOT_SHARED)
        with torch.no_grad():
            losses[shared] = mllm(batch).item()
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_answers_are_the_librarys(name: str) -> None:
    mllm = family(name)
    visual = visual_of(mllm)
    answers = generate(mllm, visual, PROMPTS, DecodingSettings(max_new_tokens=6))
    expected = [
        [plain_answer(mllm.language, image, prompt, tokens=6) for prompt in group]
        for image, group in zip(visual, PROMPTS, strict=True)
    ]
    assert answers == expected


@pytest.mark.parametrize(
    "name", ["gemma2", "mistral", "gpt_neo", "falcon", "gemma4_text", "gpt2", "mamba"]
)
def test_likelihoods_are_those_of_the_loss(name: str) -> None:
    mllm = family(name)
    item = DIALOGUES[1]
    with torch.no_grad():
        visual = mllm.visual_tokens(mllm.features(pixels(1)))
        batch = make_batch(mllm.language, [item], shared_prefix=False, pixels=pixels(1))
        loss = mllm(batch).item()
    prompt, reply = item.turns[0]
    decoding = DecodingSettings(max_new_tokens=2)
    ((found,),) = answer(mllm, list(visual), [[prompt]], decoding, [reply, "another"])
    assert found.likelihoods[0] == pytest.approx(-loss, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "changed", "why"),
    [
        (
            "falcon_h1",
            {"mamba_d_ssm": 128},
            "FalconH1ForCausalLM does not generate from embeddings",
        ),
        ("openai-gpt", {}, "OpenAIGPTLMHeadModel does not generate from embeddings"),
        ("gemma4_text", {"hidden_size_per_layer_input": 8}, "further embeddings of each token id"),
        ("gemma3n_text", {"num_kv_shared_layers": 0}, "further embeddings of each token id"),
    ],
)
def test_models_that_cannot_be_shown_an_image_are_refused_at_once(
    name: str, changed: dict[str, Any], why: str
) -> None:
    with pytest.raises(WeightsError, match=why):
        family(name, **changed)


def test_what_only_beam_search_needs_is_asked_for_beams_alone() -> None:
    """Gemma 3 of 4B and more is a class that `generate` gives no embeddings to."""
    text = {**_SHAPE, "vocab_size": len(byte_tokenizer()), "sliding_window": 24}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = CONFIG_MAPPING["gemma3"](text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    settings = LanguageModelSettings(chat_template=False)
    language = LanguageModel(model, byte_tokenizer(), settings, source="gemma3")
    mllm = small_mllm(language=language)
    if language.generates:
        pytest.skip("this release of transformers gives Gemma 3 embeddings")
    prompts = [["How many?", "Is it red?"]]
    answers = generate(mllm, visual_of(mllm, 1), prompts, DecodingSettings(max_new_tokens=4))
    assert len(answers[0]) == 2
    with pytest.raises(WeightsError, match=r"set decoding\.num_beams to 1"):
        generate(mllm, visual_of(mllm, 1), prompts, DecodingSettings(num_beams=2))


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "qwen2"])
def test_a_projector_from_zero_starts_at_words_as_the_llm_reads_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    language = family(name).language
    monkeypatch.setattr(build, "load_language_model", lambda _: language)
    mllm = build.build_mllm(make_plan(projector="linear-from-zero", visual_tokens=1))
    words = language.embed(torch.arange(len(language.table)))
    tokens = mllm.projector(torch.randn(1, mllm.encoder.num_tokens, mllm.encoder.width))
    torch.testing.assert_close(tokens[0, 0], words.float().mean(0))
