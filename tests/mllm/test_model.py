"""What is taught is what is generated, and losses add up whatever the batch is cut into."""

from __future__ import annotations

import pytest
import torch

from encoder_bench.base.recipes import DecodingSettings, LanguageModelSettings
from encoder_bench.mllm.dialogue import ImageDialogue
from encoder_bench.mllm.generate import answer, generate
from encoder_bench.mllm.loading import load_language_model
from encoder_bench.mllm.trainable import set_trainable

from .models import make_batch, pixels, small_language, small_mllm

LESSONS = (
    ImageDialogue(1, (("How many?", "2"), ("What is it?", "a red dog"))),
    ImageDialogue(2, (("How many?", "7"), ("What is it?", "the sea"))),
)


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_taught_is_answered_and_ends(shared: bool) -> None:
    language = load_language_model(LanguageModelSettings(name="tiny-llama"))
    mllm = small_mllm(language=language)
    set_trainable(mllm, encoder=True, llm="full")
    images = pixels(len(LESSONS))
    batch = make_batch(mllm.language, LESSONS, shared_prefix=shared, pixels=images)
    optimizer = torch.optim.AdamW(mllm.parameters(), lr=2e-3)
    mllm.train()
    for _ in range(200):
        optimizer.zero_grad()
        mean = mllm(batch) / batch.answer_tokens
        if mean.item() < 0.01:
            break
        mean.backward()
        optimizer.step()
    mllm.eval()
    with torch.no_grad():
        visual = mllm.visual_tokens(mllm.features(images))
    prompts = [[prompt for prompt, _ in item.turns] for item in LESSONS]
    answers = generate(mllm, visual, prompts, DecodingSettings(max_new_tokens=16))
    assert answers == [[answer for _, answer in item.turns] for item in LESSONS]
    asked, decoding = [["How many?"], ["How many?"]], DecodingSettings(max_new_tokens=1)
    counts = answer(mllm, list(visual), asked, decoding, ["2", "7", "27"])
    assert [max(range(3), key=row[0].likelihoods.__getitem__) for row in counts] == [0, 1]


def test_sums_of_micro_batches_are_the_sum_of_the_batch() -> None:
    mllm = small_mllm()
    images = pixels(2)
    batches = [
        make_batch(mllm.language, items, shared_prefix=True, pixels=own)
        for items, own in [(LESSONS, images), (LESSONS[:1], images[:1]), (LESSONS[1:], images[1:])]
    ]
    whole, *parts = batches
    assert whole.answer_tokens == sum(part.answer_tokens for part in parts)
    with torch.no_grad():
        expected = sum(mllm(part).item() for part in parts)
        assert mllm(whole).item() == pytest.approx(expected, rel=1e-5)


def test_precomputed_features_give_the_loss_of_pixels() -> None:
    mllm = small_mllm()
    images = pixels(2)
    with torch.no_grad():
        features = mllm.features(images)
        by_pixels = make_batch(mllm.language, LESSONS, shared_prefix=True, pixels=images)
        by_features = make_batch(mllm.language, LESSONS, shared_prefix=True, features=features)
        assert mllm(by_pixels) == mllm(by_features)
        assert by_pixels.answer_tokens == len(mllm.logits(by_pixels)[1])


def test_text_alone_can_be_taught() -> None:
    language = small_language(image_prefix="<Img>", image_suffix="</Img>")
    batch = make_batch(language, LESSONS, shared_prefix=True)
    assert batch.dialogues[0].segments[0].ids == (language.tokenizer.bos_token_id,)
    mllm = small_mllm(language=language)
    assert torch.isfinite(mllm(batch))


def test_images_and_dialogues_must_pair() -> None:
    language = small_language()
    with pytest.raises(ValueError, match="3 images for 2 that"):
        make_batch(language, LESSONS, shared_prefix=True, pixels=pixels(3))


def test_the_head_is_applied_at_answers_alone() -> None:
    mllm = small_mllm()
    batch = make_batch(mllm.language, LESSONS, shared_prefix=True, pixels=pixels(2))
    seen: list[tuple[int, ...]] = []
    head = mllm.language.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda *call: seen.append(tuple(call[2].shape)))
    mllm(batch)
    handle.remove()
    vocabulary = mllm.language.facts()["vocabulary"]
    assert seen == [(batch.answer_tokens, vocabulary)]
    assert not head._forward_pre_hooks
