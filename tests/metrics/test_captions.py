"""Caption metrics: the tokenizer against Java's, scores against pycocoevalcap's own."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_bench.metrics.caption import bleu, bleu_sums, cider, cider_d, rouge_l, tokenized
from encoder_bench.metrics.java import check_tokens, java_tokenize
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


def real_captions(folder: Path, split: str) -> dict[int, list[str]]:
    path = folder / "coco" / "annotations" / f"captions_{split}2017.json"
    found: dict[int, list[str]] = {}
    for row in json.loads(path.read_text())["annotations"]:
        found.setdefault(row["image_id"], []).append(row["caption"])
    return found


TRICKY = """
multi- colored|a -colored dog|12:08pm|9am and 10 p.m. today|:38|v270.09|call 212-555-1234 now
$1.50 and $20|50% off|#2 and #1 fan|w/ a dog|and/or|a U.S. flag|Mr. Smith's dog|a 4x4 truck
it`s a dog|the '90s style|a 1960's car|rock 'n' roll|an AT&T sign|a & b|o'clock|y'all|c'mon
'tis a dog|'twas|"stop" sign|''stop'' sign|a dog ; a cat|a dog: a cat|see www.a.com site
write me@x.com|:) smile|a dog ...|a dog....|no. 5|No. of|dog.cat|etc. and|e.g. a|Ph.D. man
T.V. set|TVs'|James' dog|it's.|(a dog)|[a dog]|{a}|a_dog|___ dog|a*b|a|caf\u00e9|don\u2019t
\u201cdog\u201d|dog\u2014cat|dog--cat|3.5|1,000|2,3|a ,b|2nd-floor|6'2"|half-eaten.|!?|what?!
I'd've|gonna|cannot|gimme|'em|ma'am|jack-o'-lantern|10-year-old|mid-air.|#hashtag|\u20ac5|\u00bd cup
A sign reading S.|a letter K. A dog|the letter K. The dog|K. Rowling|plan B. in red|I. At|I. am
in Lexington KY.|KY. horses|Elm Rd.|on Elm Rd. A car|Calif.|Pa. is|pa. is|the Wash.|the wash.|Mass.
.hit|the .com site|(.hit)|a .22 rifle|.NET|U.S. The dog|the dog., b|1990s.; c|T.V., it|mar. 5|et al.
a 'dog' here|the dogs'.|who's-who|don'ts|dog-|-dog|R&B|24/7|10/12/2012|100mph|a!b|plan b.|7 1/2 feet
"""


def different_lines(text: str) -> list[str]:
    return [part for line in text.strip().split("\n") for part in line.split("|")]


def test_tokens_equal_java_on_tricky_captions() -> None:
    assert check_tokens(different_lines(TRICKY)).different == ()


MIXED = (
    *("a", "dog", "S.", "K.", "KY.", "Rd.", ".hit", "U.S.", "The", "A", "man", "I.", "x.", ","),
    *(";", ":"),
    *(
        "'",
        '"',
        "-",
        "--",
        "...",
        "5",
        "5.",
        "3.5",
        "T.V.",
        "no.",
        "No.",
        "etc.",
        "(",
        ")",
        "cat's",
    ),
    *("don't", "St.", "Ave.", "Mr.", "hit.", "Two", "J.K.", "b.", "Mass.", "Pa.", "pa."),
)


def test_tokens_equal_java_on_mixed_abbreviations_letters_and_signs() -> None:
    draw = random.Random(0)
    mixed = [" ".join(draw.choices(MIXED, k=draw.randint(1, 8))) for _ in range(3000)]
    assert check_tokens(mixed).different == ()


def test_no_caption_changes_another_ones_tokens() -> None:
    # CoreNLP's program alone would keep the stop before "a dog" and split it before "A dog"
    assert java_tokenize(["plan B.", "a dog", "plan B.", "A dog"])[::2] == ["plan b"] * 2


def test_tokens_equal_java_on_every_real_caption_question_and_answer(real_data: Path) -> None:
    captions = [
        text
        for split in ("train", "val")
        for texts in real_captions(real_data, split).values()
        for text in texts
    ]
    folder = real_data / "vqav2" / "answers_only"
    questions, annotations = (
        json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))[name]
        for name in ("questions", "annotations")
    )
    asked = [row["question"] for row in questions]
    answered = [answer["answer"] for row in annotations for answer in row["answers"]]
    check = check_tokens([*captions, *asked, *answered])
    assert check.different == ()
    assert check.compared > 16_000


def test_scores_are_the_official_ones_with_javas_tokens(real_data: Path) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    captions = list(real_captions(real_data, "val").values())
    flat = java_tokenize([text for texts in captions for text in texts])
    tokens = iter(flat)
    rows = [[next(tokens) for _ in texts] for texts in captions]
    truths = {i: texts[1:] for i, texts in enumerate(rows)}
    guesses = {i: texts[:1] for i, texts in enumerate(rows)}
    ours, theirs = [texts[0] for texts in captions], [texts[1:] for texts in captions]
    expected = 100 * np.array(Cider().compute_score(truths, guesses)[1])
    assert np.abs(cider(ours, theirs) - expected).max() < 1e-6
    expected = 100 * np.array(Rouge().compute_score(truths, guesses)[1])
    assert np.abs(rouge_l(ours, theirs) - expected).max() < 1e-6
    orders, _ = Bleu(4).compute_score(truths, guesses, verbose=0)
    sums = bleu_sums(ours, theirs).sum(axis=0, keepdims=True)
    found = [float(bleu(sums, order)[0]) for order in (1, 2, 3, 4)]
    assert found == pytest.approx([100 * value for value in orders], abs=1e-6)


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
