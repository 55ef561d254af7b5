"""Right answers written awkwardly, in ways that a metric must read alike or must not.

A small model answers in lower case and nothing else, so that a metric that lower-cases too little
would pass on recorded answers alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from encoder_bench.metrics import vqa
from encoder_bench.metrics.metric import find_metric

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("awkward_answers.json").read_text())
CASES = [(task, writing) for task, content in GOLDEN.items() for writing in content["written"]]


def differing(task: str, writing: str) -> dict[str, list[float | None]]:
    """Return the metrics that score the answers in another way than was accepted."""
    references = [tuple(each) for each in GOLDEN[task]["references"]]
    written = GOLDEN[task]["written"][writing]
    found = {}
    for name, accepted in written["scores"].items():
        measure = find_metric(name).measure(written["answers"], references)
        now = measure.sample_scores()
        if now != pytest.approx(accepted, abs=2e-6):
            found[name] = now
    return found


@pytest.mark.parametrize(("task", "writing"), CASES)
def test_an_awkward_answer_scores_as_accepted(task: str, writing: str) -> None:
    assert not differing(task, writing)


def test_a_metric_that_lower_cases_too_little_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    right = vqa.normalise
    monkeypatch.setattr(vqa, "normalise", lambda text: right(text) if text.islower() else text)
    assert "vqa_accuracy_normalised" in differing("vqa", "in capitals")
