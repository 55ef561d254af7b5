"""A conversation asks with all that was said before it, as the chat template writes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.mllm.generate import Conversation, generate

from .models import small_language, small_mllm

SHORT = DecodingSettings(max_new_tokens=6)


def image() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("chat", [False, True])
def test_the_second_question_follows_the_first_answer(
    chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mllm = small_mllm(language=small_language(chat=chat))
    asked: list[str] = []

    def record(model: object, visual: object, prompts: list[list[str]], *rest: object) -> object:
        asked.append(prompts[0][0])
        return [["a cat"]]

    monkeypatch.setattr("encoder_bench.mllm.generate.generate", record)
    conversation = Conversation(mllm, image(), SHORT)
    conversation.ask("What?")
    conversation.ask("Red?")
    tokenizer, template = mllm.language.tokenizer, mllm.language.template
    expected = "What? a cat\nRed?"
    if chat:
        turns = [("user", "What?"), ("assistant", "a cat"), ("user", "Red?")]
        expected = tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in turns],
            tokenize=False,
            add_generation_prompt=True,
        )
    assert template.head + asked[1] + template.tail == expected
    assert conversation.turns == [("What?", "a cat"), ("Red?", "a cat")]


def test_one_question_is_what_generate_answers() -> None:
    mllm = small_mllm()
    with torch.no_grad():
        features = mllm.features(mllm.encoder.transform(image())[None])
        visual = mllm.visual_tokens(features)
    (expected,) = generate(mllm, visual, [["What?"]], SHORT)[0]
    assert Conversation(mllm, image(), SHORT).ask("What?") == expected


def test_text_only_needs_no_image() -> None:
    mllm = small_mllm()
    (expected,) = generate(mllm, None, [["What?"]], SHORT)[0]
    assert Conversation(mllm, None, SHORT).ask("What?") == expected
