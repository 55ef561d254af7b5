"""Questions behind one prefix have the loss and the gradients of separate sequences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from encoder_bench.base.errors import DataError
from encoder_bench.mllm.dialogue import ImageDialogue, tokenize_dialogues
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch, pack

from .models import make_batch, pixels, small_language, small_mllm

DIALOGUES = (
    ImageDialogue(7, (("How many dogs?", "2"), ("Is it red?", "Yes."), ("Describe it.", "A dog"))),
    ImageDialogue(9, (("What?", "cat"),)),
    ImageDialogue(11, (("Is the sky blue or grey?", "blue"), ("Why?", "no idea at all"))),
)


def batch_of(mllm: MLLM, items: tuple[ImageDialogue, ...], *, shared: bool) -> TrainingBatch:
    return make_batch(
        mllm.language, items, shared_prefix=shared, pixels=pixels(len(items)).to(torch.float32)
    )


def gradients(mllm: MLLM, batch: TrainingBatch) -> tuple[float, dict[str, torch.Tensor]]:
    mllm.zero_grad()
    loss = mllm(batch) / batch.answer_tokens
    loss.backward()
    found = {name: p.grad.clone() for name, p in mllm.named_parameters() if p.grad is not None}
    return loss.item(), found


def assert_equal_training(mllm: MLLM, items: tuple[ImageDialogue, ...]) -> None:
    separate, expected = gradients(mllm, batch_of(mllm, items, shared=False))
    shared, found = gradients(mllm, batch_of(mllm, items, shared=True))
    assert shared == pytest.approx(separate, abs=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, gradient.abs().max().item())
        assert (found[name] - gradient).abs().max().item() < 1e-5 * scale, name
    assert any(gradient.abs().max() > 1e-4 for gradient in expected.values())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("projector", ["mlp", "resampler"])
def test_shared_prefix_equals_separate_sequences(projector: str, implementation: str) -> None:
    mllm = small_mllm(projector=projector)
    mllm.language.model.set_attn_implementation(implementation)
    assert_equal_training(mllm, DIALOGUES)


def test_shared_prefix_equals_separate_sequences_under_a_chat_template() -> None:
    language = small_language(chat=True, image_prefix="<Img>", image_suffix="</Img>")
    assert_equal_training(small_mllm(language=language), DIALOGUES)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.text("ab ?", max_size=9), st.text("xyz", min_size=1, max_size=5)),
            min_size=1,
            max_size=5,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_dialogues_have_the_loss_of_separate_sequences(
    dialogues: list[list[tuple[str, str]]],
) -> None:
    mllm = small_mllm()
    items = tuple(ImageDialogue(index, tuple(turns)) for index, turns in enumerate(dialogues))
    with torch.no_grad():
        separate, shared = (batch_of(mllm, items, shared=shared) for shared in (False, True))
        assert shared.answer_tokens == separate.answer_tokens
        assert mllm(shared).item() == pytest.approx(mllm(separate).item(), rel=1e-5)


def test_loss_is_that_of_the_plain_library_on_joined_embeddings() -> None:
    mllm = small_mllm()
    item = DIALOGUES[0]
    loss = mllm(batch_of(mllm, (item,), shared=True))
    visual = mllm.visual_tokens(mllm.features(pixels(1)))
    language, expected = mllm.language, torch.zeros(())
    for prompt, answer in item.turns:
        question, reply = language.turn_ids(prompt, answer, image=True)
        ids = torch.tensor([*question, *reply])
        begin = torch.tensor(language.prefix_ids(image=True))
        joined = torch.cat([language.embed(begin), visual[0], language.embed(ids)])[None]
        logits = language.model(inputs_embeds=joined).logits[0]
        at = len(joined[0]) - len(reply) - 1
        expected = expected + F.cross_entropy(
            logits[at : at + len(reply)], torch.tensor(reply), reduction="sum"
        )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_question_does_not_see_the_others() -> None:
    mllm = small_mllm()
    (prompt, answer), *_ = DIALOGUES[0].turns
    alone = ImageDialogue(7, ((prompt, answer),))
    beside = replace(alone, turns=((prompt, answer), ("Is it 2? It is 2.", "2 2 2")))
    with torch.no_grad():
        first = mllm.logits(batch_of(mllm, (alone,), shared=True))[0]
        both = mllm.logits(batch_of(mllm, (beside,), shared=True))[0]
    torch.testing.assert_close(both[: len(first)], first, atol=1e-5, rtol=1e-5)


def test_images_do_not_see_each_other_in_one_row() -> None:
    mllm = small_mllm()
    batch = replace(batch_of(mllm, DIALOGUES, shared=True), row_length=500)
    rows = pack(batch, mllm.language, visual_tokens=16)
    assert len(rows.input_ids) == 1
    mask = rows.mask()
    assert mask is not None
    images = rows.dialogue[0]
    assert not mask[0, 0][images[:, None] != images[None, :]].any()
    assert mask[0, 0].diagonal().all()


def test_images_packed_into_one_row_train_as_separate_sequences() -> None:
    mllm = small_mllm()
    _, expected = gradients(mllm, batch_of(mllm, DIALOGUES, shared=False))
    packed = replace(batch_of(mllm, DIALOGUES, shared=True), row_length=500)
    _, found = gradients(mllm, packed)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_packing_makes_no_row_longer_and_wastes_less() -> None:
    mllm = small_mllm()
    items = tuple(
        ImageDialogue(index, (("What is it?", "a dog"),) * (1 + index % 4)) for index in range(12)
    )
    rows = pack(batch_of(mllm, items, shared=True), mllm.language, visual_tokens=16)
    longest = max(
        pack(batch_of(mllm, (item,), shared=True), mllm.language, visual_tokens=16).input_ids.shape[
            1
        ]
        for item in items
    )
    assert rows.input_ids.shape[1] == longest
    assert len(rows.input_ids) < len(items)


def test_layout_of_two_questions_as_the_module_shows_it() -> None:
    language = small_language()
    language.tokenizer.bos_token = None
    items = [ImageDialogue(1, (("ab", "c"), ("d", "e")))]
    batch = TrainingBatch(tokenize_dialogues(language, items, image=True), shared_prefix=True)
    rows = pack(batch, language, visual_tokens=3)
    # v v v | a b _ c | d _ e: the joiner's space belongs to the answer, its end is not fed in
    assert rows.turn[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert rows.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5]
    assert rows.visual_index[0].tolist() == [0, 1, 2, *[-1] * 7]
    assert rows.loss_columns.tolist() == [4, 5, 6, 7, 8, 9]


def test_a_question_beyond_the_context_names_its_image() -> None:
    mllm = small_mllm(language=small_language(max_length=40))
    with pytest.raises(DataError, match=r"image 11: a question needs \d+ tokens .* context has 40"):
        mllm(batch_of(mllm, DIALOGUES, shared=True))


@pytest.mark.parametrize("turns", [(), (("What?", " "),)])
def test_nothing_to_teach_names_its_image(turns: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(DataError, match="image 5"):
        make_batch(small_language(), [ImageDialogue(5, turns)], shared_prefix=True)


def test_a_sliding_window_narrower_than_the_context_keeps_sequences_separate() -> None:
    mllm = small_mllm()
    mllm.language.model.config.sliding_window = 16
    mllm.language.model.config.layer_types = ["sliding_attention"] * 4
    assert not batch_of(mllm, DIALOGUES, shared=True).shared_prefix
