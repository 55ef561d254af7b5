"""Whether a kept model still says what it said: the share of its answers that changed.

What belongs here: a gate on everything between an image and an answer. Scores alone would not
show it in a model that does not score much.
"""

from __future__ import annotations

from pathlib import Path

from encoder_bench.base.record import RunRecord
from encoder_bench.gate.verdicts import RunVerdict, TaskVerdict
from encoder_bench.tasks.predictions import Prediction, read_predictions

MOST_CHANGED = 0.03
"""Share of a run's answers that rounding may change. Answers are decoded greedily, so that only a
near tie between two words can turn."""


def check_same_answers(
    name: str, baseline: Path, accepted: RunRecord, results: Path, fresh: RunRecord
) -> RunVerdict:
    """Fail where more of a run's answers changed than another processor's rounding explains.

    Args:
        name: the run's identity in the baseline.
        baseline: holds the accepted predictions.
        accepted: the accepted record.
        results: holds the fresh predictions.
        fresh: the record of the same weights, asked again.

    Raises:
        RecordError: predictions are missing or damaged.
    """
    changed: list[tuple[Prediction, Prediction]] = []
    asked = 0
    for task in accepted.tasks:
        if task not in fresh.tasks:
            continue
        before = {each.sample_id: each for each in read_predictions(baseline, accepted, task)}
        for now in read_predictions(results, fresh, task):
            then = before.get(now.sample_id)
            if then is not None:
                asked += 1
                if then.prediction != now.prediction:
                    changed.append((then, now))
    failures: tuple[str, ...] = ()
    if changed and len(changed) > MOST_CHANGED * asked:
        then, now = changed[0]
        failures = (
            f"{len(changed)} of {asked} answers changed, more than the {MOST_CHANGED:.0%} that "
            f"rounding may change; the first {then.sample_id}: was {then.prediction!r}, "
            f"now {now.prediction!r}",
        )
    verdict = TaskVerdict("same answers from the same weights", None, failures)
    note = f"{len(changed)} of {asked} answers changed when the kept model was asked again"
    return RunVerdict(name, accepted.run_id, None, (), (verdict,), (note,))
