"""The engine answers as the plain library does, one question at a time, token for token."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from encoder_bench.base.errors import DataError, WeightsError
from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.mllm import generate as generation
from encoder_bench.mllm.generate import Conversation, answer, cut_at_stop, generate
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.prefix import Prefix

from .models import pixels, small_language, small_mllm

PROMPTS = [
    ["How many dogs are there?", "Is it red?", "Describe the image in one sentence."],
    ["What?"],
    ["Is there a cat in the image, or a dog, or neither of them?", "Is it red?", "x"],
]


def plain_answer(
    language: LanguageModel,
    visual: Tensor | None,
    prompt: str,
    *,
    tokens: int,
    beams: int = 1,
    **settings: Any,
) -> str:
    """The library's own generate on one sequence: no cache shared, no batch, no padding."""
    image = visual is not None
    begin = torch.tensor([language.prefix_ids(image=image)], dtype=torch.long)
    question = torch.tensor([language.question_ids(prompt, image=image)])
    parts = [language.embed(begin), language.embed(question)]
    if visual is not None:
        parts.insert(1, visual[None])
    embeddings = torch.cat(parts, dim=1)
    ids = language.model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=beams,
        **settings,
    )
    answer = ids[0].tolist()
    end = next((n for n, token in enumerate(answer) if token in language.end_ids), len(answer))
    return language.decode(answer[:end])


def likelihoods(
    mllm: MLLM, visual: Tensor, prompts: list[list[str]], candidates: list[str]
) -> list[list[tuple[float, ...]]]:
    replies = answer(mllm, list(visual), prompts, DecodingSettings(max_new_tokens=3), candidates)
    return [[reply.likelihoods for reply in group] for group in replies]


def visual_of(mllm: MLLM, images: int = 3) -> Tensor:
    with torch.no_grad():
        # the projector is untrained: scale its tokens so that images change answers
        return 10 * mllm.visual_tokens(mllm.features(pixels(images)))


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("rows", [256, 2])
def test_equal_to_the_plain_library(chat: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encoder_bench.mllm.prefix.MAX_ROWS", rows)
    mllm = small_mllm(language=small_language(chat=chat))
    visual = visual_of(mllm)
    answers = generate(mllm, visual, PROMPTS, DecodingSettings(max_new_tokens=12))
    expected = [
        [plain_answer(mllm.language, image, prompt, tokens=12) for prompt in group]
        for image, group in zip(visual, PROMPTS, strict=True)
    ]
    assert answers == expected
    assert len({text for group in answers for text in group}) > 3
    assert answers[0][1] != answers[2][1]  # the same question on another image


def test_one_question_an_image_is_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = small_mllm()
    visual = visual_of(mllm)
    passes: list[int] = []
    forward = mllm.language.forward
    monkeypatch.setattr(
        mllm.language, "forward", lambda e, **k: (passes.append(e.shape[1]), forward(e, **k))[1]
    )
    prompts = [group[:1] for group in PROMPTS]
    answers = generate(mllm, visual, prompts, DecodingSettings(max_new_tokens=6))
    assert len(passes) <= 6
    assert answers == [
        [plain_answer(mllm.language, image, group[0], tokens=6)]
        for image, group in zip(visual, prompts, strict=True)
    ]


def test_without_an_image_only_the_prompt_is_seen() -> None:
    mllm = small_mllm(language=small_language(image_prefix="<Img>", image_suffix="</Img>"))
    answers = generate(mllm, None, PROMPTS, DecodingSettings(max_new_tokens=8))
    expected = [
        [plain_answer(mllm.language, None, prompt, tokens=8) for prompt in group]
        for group in PROMPTS
    ]
    assert answers == expected
    assert answers[0][1] == answers[2][1]


def test_without_any_prefix_padding_is_harmless() -> None:
    mllm = small_mllm()
    mllm.language.tokenizer.bos_token = None
    assert mllm.language.prefix_ids(image=False) == []
    answers = generate(mllm, None, PROMPTS, DecodingSettings(max_new_tokens=8))
    expected = [
        [plain_answer(mllm.language, None, prompt, tokens=8) for prompt in group]
        for group in PROMPTS
    ]
    assert answers == expected


def test_rows_that_end_leave_without_changing_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = small_mllm()
    visual = visual_of(mllm)
    free = generate(mllm, visual, PROMPTS, DecodingSettings(max_new_tokens=16))
    # make characters of four answers the end of an answer, so that four rows or more end early
    texts = [text for group in free for text in group][:4]
    early = {next(c for c in text[1:] if c.isascii() and not c.isspace()) for text in texts}
    ending = {mllm.language.encode(character)[0] for character in early}
    mllm.language.end_ids = mllm.language.end_ids | ending
    sizes: list[int] = []
    forward = mllm.language.forward
    monkeypatch.setattr(
        mllm.language, "forward", lambda e, **k: (sizes.append(len(e)), forward(e, **k))[1]
    )
    found = generate(mllm, visual, PROMPTS, DecodingSettings(max_new_tokens=16))
    mllm.language.model.generation_config.eos_token_id = sorted(mllm.language.end_ids)
    expected = [
        [plain_answer(mllm.language, image, prompt, tokens=16) for prompt in group]
        for image, group in zip(visual, PROMPTS, strict=True)
    ]
    assert found == expected
    assert found != free
    assert min(sizes[1:]) < max(sizes)


def test_beam_search_is_the_librarys() -> None:
    mllm = small_mllm()
    visual = visual_of(mllm)
    decoding = DecodingSettings(max_new_tokens=6, num_beams=3)
    expected = [
        [plain_answer(mllm.language, image, prompt, tokens=6, beams=3) for prompt in group]
        for image, group in zip(visual, PROMPTS, strict=True)
    ]
    assert generate(mllm, visual, PROMPTS, decoding) == expected


def test_stop_strings_cut_the_answer_and_end_it_early(monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = small_mllm()
    visual = visual_of(mllm)
    whole = generate(mllm, visual, PROMPTS, DecodingSettings(max_new_tokens=12))
    stop = next(c for c in whole[0][0][2:] if not c.isspace() and c.isascii())
    steps: list[int] = []
    forward = mllm.language.forward
    monkeypatch.setattr(
        mllm.language, "forward", lambda e, **k: (steps.append(len(e)), forward(e, **k))[1]
    )
    decoding = DecodingSettings(max_new_tokens=12, stop=(stop,))
    (answer,) = generate(mllm, visual[:1], [[PROMPTS[0][0]]], decoding)[0]
    assert answer == whole[0][0].partition(stop)[0].strip()
    assert len(steps) - 1 < 12  # one call reads the prefix


def test_stop_strings_end_beams_as_the_library_ends_them() -> None:
    """Text after a stop string has no part in which beam wins."""
    mllm = small_mllm()
    language, visual, prompts = mllm.language, visual_of(mllm, 12), ["How many?", "Is it red?", "x"]
    asked = changed = 0
    for image, prompt in itertools.product(visual, prompts):
        beams = DecodingSettings(max_new_tokens=8, num_beams=3)
        ((whole,),) = generate(mllm, image[None], [[prompt]], beams)
        stop = next((c for c in whole[1:5] if not c.isspace() and c.isascii()), None)
        if stop is None:
            continue
        stopped = beams.model_copy(update={"stop": (stop,)})
        ((answer,),) = generate(mllm, image[None], [[prompt]], stopped)
        text = plain_answer(
            language,
            image,
            prompt,
            tokens=8,
            beams=3,
            stop_strings=[stop],
            tokenizer=language.tokenizer,
        )
        assert answer == cut_at_stop(text, [stop])
        asked, changed = asked + 1, changed + (answer != cut_at_stop(whole, [stop]))
    assert asked > 10
    assert changed


def test_an_empty_prompt_without_anything_before_it_is_refused() -> None:
    mllm = small_mllm()
    mllm.language.prefix_ids = lambda *, image: []  # type: ignore[method-assign]
    with pytest.raises(DataError, match="an empty prompt without an image"):
        answer(mllm, [None], [[""]], DecodingSettings(max_new_tokens=3))


def test_candidates_in_rows_of_their_own_are_counted_as_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mllm = small_mllm()
    monkeypatch.setattr(type(mllm.language), "keeps_questions_apart", False)
    copies: list[int] = []
    batches = Prefix.batches
    monkeypatch.setattr(
        Prefix, "batches", lambda *a, **k: (copies.append(k["copies"]), batches(*a, **k))[1]
    )
    decoding, candidates = DecodingSettings(max_new_tokens=2), ["1", "2", "3"]
    answer(mllm, list(visual_of(mllm, 1)), [["How many?"]], decoding, candidates)
    assert copies == [3]


def test_empty_prompts_are_answered_after_the_image() -> None:
    mllm = small_mllm()
    visual = visual_of(mllm, 1)
    decoding = DecodingSettings(max_new_tokens=5)
    answer = generate(mllm, visual, [["", "What?"]], decoding)
    begin = mllm.language.embed(torch.tensor([mllm.language.prefix_ids(image=True)]))
    joined = torch.cat([begin, visual], dim=1)
    mask = torch.ones(joined.shape[:2], dtype=torch.long)
    ids = mllm.language.model.generate(
        inputs_embeds=joined, attention_mask=mask, max_new_tokens=5, do_sample=False
    )
    assert answer[0][0] == mllm.language.decode(ids[0].tolist())
    assert answer[0][1] == plain_answer(mllm.language, visual[0], "What?", tokens=5)


def test_likelihoods_are_those_of_separate_sequences() -> None:
    mllm = small_mllm()
    visual = visual_of(mllm)
    candidates = ["Yes.", "No.", "10", "1"]
    found = likelihoods(mllm, visual, PROMPTS, candidates)
    language = mllm.language
    for image, group, scores in zip(visual, PROMPTS, found, strict=True):
        for prompt, row in zip(group, scores, strict=True):
            for candidate, value in zip(candidates, row, strict=True):
                question, reply = language.turn_ids(prompt, candidate, image=True)
                begin = torch.tensor(language.prefix_ids(image=True))
                ids = torch.tensor([*question, *reply])
                joined = torch.cat([language.embed(begin), image, language.embed(ids)])[None]
                with torch.no_grad():
                    spread = language.model(inputs_embeds=joined).logits[0].log_softmax(-1)
                at = joined.shape[1] - len(reply) - 1
                expected = sum(spread[at + n, token].item() for n, token in enumerate(reply))
                assert value == pytest.approx(expected, abs=1e-4)


def test_images_no_image_and_candidates_in_one_batch() -> None:
    mllm = small_mllm(language=small_language(image_prefix="<Img>", image_suffix="</Img>"))
    visual = visual_of(mllm)
    shown = [visual[0], None, visual[1], None]
    prompts = [PROMPTS[0], PROMPTS[2], PROMPTS[2], ["Is it red?", "Why is it there?"]]
    found = answer(mllm, shown, prompts, DecodingSettings(max_new_tokens=9), ["Yes.", "No.", "7"])
    language = mllm.language
    for tokens, group, replies in zip(shown, prompts, found, strict=True):
        assert [reply.text for reply in replies] == [
            plain_answer(language, tokens, prompt, tokens=9) for prompt in group
        ]
        for prompt, reply in zip(group, replies, strict=True):
            (alone,) = answer(mllm, [tokens], [[prompt]], DecodingSettings(max_new_tokens=1), ["7"])
            assert reply.likelihoods[2] == pytest.approx(alone[0].likelihoods[0], abs=1e-4)
    assert found[1][1] == found[3][0]  # the same question without an image


def test_likelihoods_without_masks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = small_mllm()
    visual = visual_of(mllm)
    packed = likelihoods(mllm, visual, PROMPTS, ["Yes.", "No."])
    monkeypatch.setattr(LanguageModel, "keeps_questions_apart", False)
    apart = likelihoods(mllm, visual, PROMPTS, ["Yes.", "No."])
    for left, right in zip(packed, apart, strict=True):
        for a, b in zip(left, right, strict=True):
            assert a == pytest.approx(b, abs=1e-4)


def test_a_prompt_beyond_the_context_is_shown() -> None:
    mllm = small_mllm(language=small_language(max_length=64))
    with pytest.raises(DataError, match=r"prompt 'How many dogs.*context has 64"):
        generate(mllm, visual_of(mllm, 1), [["How many dogs? " * 5]], DecodingSettings())


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("prompt", ["How many dogs are there?", ""])
@pytest.mark.parametrize("resumes", [True, False])
def test_logits_that_are_not_finite_are_no_answer(
    beams: int, prompt: str, resumes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest of NaN is token 0 or so, which would be scored as an answer."""
    mllm = small_mllm()
    visual = visual_of(mllm, 1)
    mllm.language.model.model.norm.weight.data[3] = torch.nan
    monkeypatch.setattr(LanguageModel, "resumes_from_cache", resumes)
    decoding = DecodingSettings(max_new_tokens=4, num_beams=beams)
    with pytest.raises(WeightsError, match="logits are not finite, in float32; check its weights"):
        generate(mllm, visual, [[prompt]], decoding)
    if prompt:
        with pytest.raises(WeightsError, match="logits are not finite"):
            answer(mllm, list(visual), [[prompt]], decoding, ["Yes.", "No."])


def test_logits_that_overflow_name_the_dtype() -> None:
    mllm = small_mllm()
    visual = visual_of(mllm, 1)
    mllm.language.model.model.norm.weight.data *= 1e5
    mllm.language.half()
    with pytest.raises(WeightsError, match=r"in float16; set llm\.dtype to float32"):
        generate(mllm, visual.half(), PROMPTS[:1], DecodingSettings(max_new_tokens=4))


def test_generating_leaves_modes_as_they_were() -> None:
    mllm = small_mllm()
    mllm.train()
    before = {name: module.training for name, module in mllm.named_modules()}
    generate(mllm, None, [["What?"]], DecodingSettings(max_new_tokens=2))
    assert {name: module.training for name, module in mllm.named_modules()} == before
    assert mllm.language.model.training


@pytest.mark.parametrize(
    ("text", "stop", "cut"),
    [("A dog. It runs", (".",), "A dog"), ("A dog", (".",), "A dog"), ("a!b.c", (".", "!"), "a")],
)
def test_cut_at_stop(text: str, stop: tuple[str, ...], cut: str) -> None:
    assert generation.cut_at_stop(text, stop) == cut


def noise_image() -> Image.Image:
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
    conversation = Conversation(mllm, noise_image(), DecodingSettings(max_new_tokens=6))
    conversation.ask("What?")
    conversation.ask("Red?")
    tokenizer, template = mllm.language.tokenizer, mllm.language.template
    expected = "What? a cat</s>\nRed?"
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
        features = mllm.features(mllm.encoder.transform(noise_image())[None])
        visual = mllm.visual_tokens(features)
    (expected,) = generate(mllm, visual, [["What?"]], DecodingSettings(max_new_tokens=6))[0]
    assert (
        Conversation(mllm, noise_image(), DecodingSettings(max_new_tokens=6)).ask("What?")
        == expected
    )


def test_text_only_needs_no_noise_image() -> None:
    mllm = small_mllm()
    (expected,) = generate(mllm, None, [["What?"]], DecodingSettings(max_new_tokens=6))[0]
    assert Conversation(mllm, None, DecodingSettings(max_new_tokens=6)).ask("What?") == expected
