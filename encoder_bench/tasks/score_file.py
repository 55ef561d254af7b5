"""Any model's predictions file under every variant of a task's metrics, side by side.

What belongs here: the answer to "why is my score not the paper's". Answers are read from a file
instead of asked of a model; everything else is the runner's own scoring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from encoder_bench.base.errors import DataError
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.base.record import Score
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import Measure, recorded_metric
from encoder_bench.tasks.answers_file import read_answers_file
from encoder_bench.tasks.controls import constant_answer, majority_answers
from encoder_bench.tasks.measures import broken_down, score_of
from encoder_bench.tasks.registry import find_runner


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """One answer: what it was read as, and its score under each metric that a sample has."""

    sample: Sample
    prediction: str
    parsed: str | None
    scores: dict[str, float]


Missing = Literal["refuse", "wrong", "leave-out"]
"""What becomes of samples without an answer."""


@dataclass(frozen=True, slots=True)
class Conformance:
    """Scores by metric, and the samples behind them.

    Attributes:
        task: its name.
        primary: the metric that the others are variants of.
        scores: by metric, each over the scored samples.
        blind: control (`constant`, `majority`) -> its score by the primary metric.
        breakdown: metric -> facet -> facet value -> score.
        samples: those that were scored.
        total: samples of the split.
        odd: what is odd about the file, by kind: the names of samples or rows.
    """

    task: str
    primary: str
    scores: dict[str, Score]
    blind: dict[str, Score]
    breakdown: dict[str, dict[str, dict[str, Score]]]
    samples: tuple[ScoredSample, ...]
    total: int
    odd: dict[str, list[str]]

    @property
    def missing(self) -> tuple[str, ...]:
        """Samples of the split that the file does not answer."""
        return tuple(self.odd.get("missing", ()))

    @property
    def lift(self) -> float | None:
        """The primary score − the best blind one; None where one of them is n/a."""
        own = self.scores[self.primary].value
        known = [score.value for score in self.blind.values() if score.value is not None]
        if own is None or not known:
            return None
        lower = recorded_metric(self.primary).higher_is_better is False
        return own - (min(known) if lower else max(known))

    @property
    def parse_failures(self) -> int:
        """How many answers could not be parsed."""
        return sum(entry.parsed is None for entry in self.samples)

    def differing(self, metric: str) -> list[ScoredSample]:
        """Return the samples that a metric scores otherwise than the primary one does."""
        return [
            entry
            for entry in self.samples
            if metric in entry.scores
            and self.primary in entry.scores
            and abs(entry.scores[metric] - entry.scores[self.primary]) > 1e-9
        ]

    def variants(self) -> list[str]:
        """Return the metrics that are other readings of the primary one."""
        stems = (f"{self.primary}_", f"{self.primary}@")
        return [name for name in self.scores if name.startswith(stems)]


def score_predictions(
    task: str,
    recipe: TaskRecipe,
    samples: Sequence[Sample],
    file: Path,
    *,
    seed: int = 0,
    missing: Missing = "refuse",
) -> Conformance:
    """Score a predictions file under every metric that the task's runner has.

    Args:
        task: the task's name.
        recipe: its recipe; all metrics of its runner are computed, not only the recipe's.
        samples: the test split.
        file: JSON (a list) or JSON lines, each row with an id and an answer; or CSV with a header.
        seed: of the bootstrap.
        missing: refuse a file that does not answer every sample, score those as empty answers, or
            leave them out.

    Raises:
        DataError: the file is malformed, an answer stands twice, none fits, or some are missing.
    """
    runner = find_runner(recipe.runner)
    answers = read_answers_file(file)
    found = answers.matched(task, samples)
    absent = answers.odd.get("missing", [])
    if absent and missing == "refuse":
        raise DataError(
            f"{file}: no answer to {len(absent)} of {len(samples)} samples, the first {absent[0]}; "
            "--missing-is-wrong scores them as empty, --answered-only leaves them out"
        )
    kept = [s for s in samples if missing != "leave-out" or s.sample_id in found]
    texts = [found.get(sample.sample_id, "") for sample in kept]
    whole = {"corpus": samples} if getattr(runner, "CORPUS_METRICS", ()) else {}
    measured = runner.measure(kept, texts, runner.METRICS, **whole)
    measures = measured.measures
    rows = tuple(
        ScoredSample(sample, text, parsed, dict(_sample_scores(measures, index)))
        for index, (sample, text, parsed) in enumerate(
            zip(kept, texts, measured.parsed, strict=True)
        )
    )
    named = [name for name in measures if measured.every_metric or name.startswith(recipe.primary)]
    broken = {
        name: broken_down(measures[name], kept, measured.breakdowns, seed=seed) for name in named
    }
    return Conformance(
        task,
        recipe.primary,
        {name: score_of(measure, kept, seed=seed) for name, measure in measures.items()},
        _blind_scores(recipe, kept, seed),
        {name: facets for name, facets in broken.items() if facets},
        rows,
        len(samples),
        answers.odd,
    )


def _blind_scores(recipe: TaskRecipe, samples: Sequence[Sample], seed: int) -> dict[str, Score]:
    """Return what answers that look at no image score by the primary metric."""
    runner = find_runner(recipe.runner)
    if not all(sample.references for sample in samples):
        return {}
    answers = {"constant": constant_answer(samples, runner, recipe.primary)}
    if all(sample.question for sample in samples):
        answers["majority"] = majority_answers(samples)
    found = {}
    for control, texts in answers.items():
        measure = runner.measure(samples, texts, [recipe.primary]).measures[recipe.primary]
        found[control] = score_of(measure, samples, seed=seed)
    return found


def _sample_scores(measures: dict[str, Measure], index: int) -> Iterator[tuple[str, float]]:
    for name, measure in measures.items():
        value = measure.sample_score(index)
        if value is not None:
            yield name, value
