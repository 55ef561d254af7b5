"""VQA accuracy against a second implementation, on every real question and on hostile text."""

from __future__ import annotations

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_bench.data.sample import Sample
from encoder_bench.metrics.vqa import _CONTRACTIONS, vqa_accuracy, vqa_accuracy_pre2021
from encoder_bench.tasks.evaluate import breakdowns, measure
from encoder_bench.tasks.predictions import Reply
from encoder_bench.tasks.task import find_runner
from tests.metrics.vqa_oracle import MISSPELT, before_2021, present, spelt

Pair = tuple[Callable[[str, Sequence[str]], float], Callable[[str, list[str]], float]]
PAIRS: list[Pair] = [(vqa_accuracy, present), (vqa_accuracy_pre2021, before_2021)]
PIECES = [
    *("yes", "Yes", "no", "none", "a", "an", "the", "The", "two", "2", "ten", "10", "zero"),
    *("dont", "couldnt've", "somebody'd", "ow's'at", "twas", "Im", "let's", "its", "weve"),
    *(".", "..", ",", ", ", "1,000", "1,0 ", "3.5", "3.", ".5", "-", " - ", "/", "'", ":", ";"),
    *("!", "?", "(", ")", "[", "]", "{", "}", "\\", "_", "@", "`", "<", ">", '"', "+", "=", "*"),
    *("\n", "\t", " ", "  ", "\u00a0", "\u2003", "\x00", "\x1f", "\x85", "\u200b", "\u202e"),
    *("١,٢", "٣.", "½", "é", "É", "İ", "ß", "猫", "犬。", "да", "🐶", "\ud800", "ﬁ", "Ⅷ"),
    *("." * 40, "a.b" * 20, "t-shirt", "u.s.", "o'clock", "x" * 200),
]  # fmt: skip


def rows(real_data: Path) -> list[dict[str, object]]:
    path = real_data / "vqav2" / "answers_only" / "annotations.json.gz"
    found: list[dict[str, object]] = json.loads(gzip.decompress(path.read_bytes()))["annotations"]
    return found


def alike(ours: float, theirs: float) -> bool:
    """Return whether scores agree but for the last bits, which the version of Python decides."""
    return abs(ours - theirs) < 1e-9


def humans_of(row: dict[str, object]) -> list[str]:
    answers = row["answers"]
    assert isinstance(answers, list)
    return [answer["answer"] for answer in answers]


def test_the_table_of_contractions_is_the_official_one() -> None:
    table = _CONTRACTIONS
    assert {key for key, value in table.items() if key != value} == set(MISSPELT)
    assert {key: table[key] for key in MISSPELT} == {key: spelt(key) for key in MISSPELT}


def test_every_real_question_scores_alike_for_every_human_answer(real_data: Path) -> None:
    compared = 0
    for row in rows(real_data):
        humans = humans_of(row)
        for ours, theirs in PAIRS:
            for answer in set(humans):
                assert alike(ours(answer, humans), theirs(answer, humans)), (answer, humans)
                compared += humans.count(answer)
    assert compared == 8977 * 10 * 2


def test_every_real_question_scores_alike_for_hostile_answers(real_data: Path) -> None:
    generator = random.Random(5)
    for row in rows(real_data):
        humans = humans_of(row)
        common = str(row["multiple_choice_answer"])
        noise = "".join(generator.choices(PIECES, k=3))
        for answer in (noise, common.upper() + noise, f"the {common}.", f"{common},{noise}", ""):
            for ours, theirs in PAIRS:
                assert alike(ours(answer, humans), theirs(answer, humans)), (answer, humans)


text = st.lists(st.sampled_from(PIECES), max_size=4).map("".join) | st.text(max_size=8)


@given(text, st.lists(text, min_size=1, max_size=4), st.integers(0, 2**32))
@settings(max_examples=500, deadline=None)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_any_text_scores_alike(
    ours: Callable[[str, Sequence[str]], float],
    theirs: Callable[[str, list[str]], float],
    prediction: str,
    few: list[str],
    seed: int,
) -> None:
    humans = random.Random(seed).choices([*few, prediction], k=10)
    assert alike(ours(prediction, humans), theirs(prediction, humans))


def test_the_breakdown_is_the_mean_of_each_answer_type_and_question_type(real_data: Path) -> None:
    chosen = rows(real_data)[:2000]
    samples = [
        Sample(
            str(row["question_id"]), "vqa", int(str(row["image_id"])), Path("x"), "?",
            tuple(humans_of(row)), str(row["multiple_choice_answer"]),
            {"answer_type": str(row["answer_type"]), "question_type": str(row["question_type"])},
        )
        for row in chosen
    ]  # fmt: skip
    runner, answers = find_runner("vqa"), [Reply(s.references[0]) for s in samples]
    measured = measure(runner, ["vqa_accuracy"], [s.references for s in samples], answers)
    found = breakdowns(runner, measured.measures, samples, seed=0)["vqa_accuracy"]
    for facet in ("answer_type", "question_type"):
        by_value: dict[str, list[float]] = defaultdict(list)
        for sample in samples:
            by_value[str(sample.facets[facet])].append(
                present(sample.references[0], list(sample.references))
            )
        expected = {value: sum(scores) / len(scores) for value, scores in by_value.items()}
        assert {k: v.value for k, v in found[facet].items()} == pytest.approx(expected, abs=1e-9)
