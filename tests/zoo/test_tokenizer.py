"""The tiny language model's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from zoo.tokenizer import build_tokenizer, words_of

TEXTS = ["Question: How many red cups are there? Short answer: 2", "Yes.", "a red cup"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(words_of(TEXTS))


def test_a_known_word_is_one_token(tokenizer: Any) -> None:
    pieces = tokenizer.tokenize("How many red cups? 2")
    assert pieces == ["▁How", "▁many", "▁red", "▁cups", "?", "▁2"]


def test_a_word_is_the_same_token_wherever_it_stands(tokenizer: Any) -> None:
    ids = tokenizer("red cup red", add_special_tokens=False)["input_ids"]
    assert ids[0] == ids[2]


@given(text=st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    tokenizer = _TOKENIZER
    text = text.lstrip(" ").replace("▁", "").replace("<", "")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_special_tokens_have_fixed_ids(tokenizer: Any) -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert tokenizer("")["input_ids"] == [2]


def test_it_is_read_back_by_the_ordinary_loader(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "ünknown wörds 17 €"]:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert again.decode(again(text)["input_ids"], skip_special_tokens=True) == text


_TOKENIZER = build_tokenizer(words_of(TEXTS))
