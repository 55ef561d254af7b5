"""Pages of words in the place of an image, and the loss of the answers behind them."""

from __future__ import annotations

import pytest
import torch

from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.mllm.language import LanguageModel
from zoo.language import tiny_llama
from zoo.reading import (
    Page,
    answer_logits,
    cell_embeddings,
    encode_pages,
    exact_answers,
    reading_loss,
)
from zoo.tokenizer import build_tokenizer, words_of

WORDS = words_of(["a red cup blue ball left right How many cups What colour : ? 0 1 2 Yes. No."])
PAGES = [
    Page(
        "one",
        (("red", "cup"), ("blue", "ball")),
        (("How many cups?", "1"), ("red?", "Yes.")),
        ("oc", "mci"),
    ),
    Page("two", (("blue", "cup", "left"),), (("What colour?", "blue"),), ("vqa",)),
]


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    tokenizer = build_tokenizer(WORDS)
    return LanguageModel(
        tiny_llama(tokenizer, seed=0),
        tokenizer,
        LanguageModelSettings(),
        pretrained=False,
        source="test",
        revision=None,
    )


def test_a_cell_adds_its_words_and_keeps_their_length() -> None:
    table = torch.tensor([[3.0, 0.0], [0.0, 3.0], [9.0, 9.0]])
    cells = cell_embeddings(table, torch.tensor([[[0, 1], [2, -1], [-1, -1]]]))
    root = 3.0 / 2.0**0.5
    torch.testing.assert_close(cells, torch.tensor([[[root, root], [9.0, 9.0], [0.0, 0.0]]]))


def test_a_page_of_single_words_is_ordinary_text(language: LanguageModel) -> None:
    page = Page("text", (("red",), ("cup",)), (("What colour?", "red"),), ("vqa",))
    batch = encode_pages(language, [page])
    cells = cell_embeddings(language.model.get_input_embeddings().weight, batch.words)
    question, answer = language.turn_ids("What colour?", "red", image=True)
    ids = torch.tensor(
        [[*language.prefix_ids(image=True), *language.encode("red cup"), *question, *answer[:-1]]]
    )
    with torch.no_grad():
        plain = language.model(input_ids=ids).logits[0, -len(answer) :]
        ours = answer_logits(language, batch, cells)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)


def test_questions_behind_one_page_equal_questions_alone(language: LanguageModel) -> None:
    both = reading_loss(language, encode_pages(language, PAGES[:1]))
    apart = [Page("p", PAGES[0].cells, (turn,), ("t",)) for turn in PAGES[0].turns]
    sums, tokens = 0.0, 0
    for page in apart:
        batch = encode_pages(language, [page])
        count = len(batch.rows.targets)
        sums += reading_loss(language, batch).item() * count
        tokens += count
    assert both.item() == pytest.approx(sums / tokens, abs=1e-5)


def test_noise_comes_from_the_generator_alone(language: LanguageModel) -> None:
    batch = encode_pages(language, PAGES)
    values = [
        reading_loss(
            language,
            batch,
            generator=torch.Generator().manual_seed(seed),
            noise=0.5,
            dropout=0.5,
        ).item()
        for seed in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]


def test_exact_answers_after_learning_them_by_heart(language: LanguageModel) -> None:
    optimizer = torch.optim.Adam(language.parameters(), lr=1e-3)
    batch = encode_pages(language, PAGES)
    before = exact_answers(language, PAGES)
    for _ in range(40):
        loss = reading_loss(language, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert {task: total for task, (_, total) in before.items()} == {"oc": 1, "mci": 1, "vqa": 1}
    assert exact_answers(language, PAGES) == {"oc": (1, 1), "mci": (1, 1), "vqa": (1, 1)}
