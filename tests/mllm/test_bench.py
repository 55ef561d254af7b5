"""The benchmark measures what it says: the same answers, fewer tokens. Speed is not asserted."""

from __future__ import annotations

import json

from encoder_bench.bench.mllm import questions, run_bench


def test_a_small_benchmark() -> None:
    result = run_bench(
        images=2, visual_tokens=16, repeats=1, new_tokens=3, questions_per_image=(1, 3)
    )
    json.dumps(result)
    alone, three = (result["shared_prefix"][count] for count in ("1", "3"))
    assert alone["shared_tokens"] == alone["separate_tokens"]
    assert three["shared_tokens"] < three["separate_tokens"]
    for entry in (alone, three):
        assert entry["speed_up"] == entry["separate_seconds"] / entry["shared_seconds"]
    assert all(entry["answers_equal"] for entry in result["generation"].values())


def test_questions_of_one_image_differ() -> None:
    assert len(set(questions(18, offset=3))) == 18
