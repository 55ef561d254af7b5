"""Any model's predictions file under every metric of a task: why a score is not the paper's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from encoder_bench.base.errors import DataError
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.base.record import Score
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import find_metric, runner_metrics
from encoder_bench.metrics.vqa import ceiling
from encoder_bench.tasks.answers_file import read_answers_file
from encoder_bench.tasks.controls import constant_answer, majority_answers
from encoder_bench.tasks.evaluate import Breakdown, breakdowns, measure, score_of
from encoder_bench.tasks.matching import match
from encoder_bench.tasks.predictions import Prediction, Reply
from encoder_bench.tasks.task import check_samples, find_runner

Missing = Literal["refuse", "wrong", "leave-out"]
"""What becomes of samples without an answer."""


@dataclass(frozen=True, slots=True)
class FileScores:
    """Scores by metric, and the samples behind them.

    Attributes:
        primary: the metric that the others are variants of.
        scores: by metric, each over the scored samples.
        blind: control (`constant`, `question-majority`) -> its score by the primary metric.
        breakdown: metric -> facet -> facet value -> score.
        total: samples of the split.
        odd: what is odd about the file, by kind: the names of samples or rows.
        form: how the file was read: its layout, the kind of id, and the column of the answers.
        ceiling: the highest VQA accuracy that any answers reach, where some samples have so few
            references that 100 is out of reach; else None.
    """

    task: str
    primary: str
    scores: dict[str, Score]
    blind: dict[str, Score]
    breakdown: dict[str, Breakdown]
    samples: tuple[Prediction, ...]
    total: int
    odd: dict[str, list[str]]
    form: str
    ceiling: float | None

    @property
    def lift(self) -> float | None:
        """By how much the primary score is better than the best blind one; None where n/a."""
        metric, own = find_metric(self.primary), self.scores[self.primary].value
        if own is None or metric.higher_is_better is None:
            return None
        blind = (score.value for score in self.blind.values())
        return min((metric.loss(own, value) for value in blind if value is not None), default=None)

    @property
    def parse_failures(self) -> int:
        """How many answers could not be parsed."""
        return sum(entry.parsed is None for entry in self.samples)

    def differing(self, metric: str) -> list[Prediction]:
        """Return the samples that a metric scores otherwise than the primary one does."""
        found = []
        for entry in self.samples:
            own, other = entry.scores.get(self.primary), entry.scores.get(metric)
            if own is not None and other is not None and abs(own - other) > 1e-9:
                found.append(entry)
        return found

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
    missing: Missing = "refuse",
    column: str | None = None,
) -> FileScores:
    """Score a predictions file under every metric of the task's runner, not only the recipe's.

    `samples` are the test split, `missing` says what becomes of those without an answer, and
    `column` is the key that holds the answers; None to find it.

    Raises:
        DataError: the file is malformed, leaves open which column holds the answers,
            answers a sample twice, fits no sample, or lacks some.
    """
    runner = find_runner(recipe.runner)
    check_samples(task, runner, samples)
    answers = read_answers_file(file, column)
    found, how = match(answers, task, samples)
    if missing == "refuse" and (absent := answers.odd.get("missing")):
        raise DataError(
            f"{file}: no answer to {len(absent)} of {len(samples)} samples, the first {absent[0]}; "
            "--missing-is-wrong scores them as empty, --answered-only leaves them out"
        )
    kept = [s for s in samples if missing != "leave-out" or s.sample_id in found]
    given = [Reply(found.get(sample.sample_id, "")) for sample in kept]
    references, corpus = ([s.references for s in each] for each in (kept, samples))
    measured = measure(runner, runner_metrics(runner.name), references, given, corpus)
    every = runner.break_down_all
    named = {n: m for n, m in measured.measures.items() if every or n.startswith(recipe.primary)}
    return FileScores(
        task,
        recipe.primary,
        {name: score_of(each, kept, seed=0) for name, each in measured.measures.items()},
        _blind_scores(recipe, kept),
        breakdowns(runner, named, kept, seed=0),
        tuple(measured.predictions(recipe, kept, given)),
        len(samples),
        answers.odd,
        f"{answers.form}, {how}",
        ceiling(references) if runner.name == "vqa" else None,
    )


def _blind_scores(recipe: TaskRecipe, samples: Sequence[Sample]) -> dict[str, Score]:
    """Return what answers that look at no image score by the primary metric."""
    if not all(sample.references for sample in samples):
        return {}
    answers = {"constant": constant_answer(samples, recipe.primary)}
    if all(sample.question for sample in samples):
        answers["question-majority"] = majority_answers(samples)
    primary, references = find_metric(recipe.primary), [sample.references for sample in samples]
    return {
        control: score_of(primary.measure(texts, references), samples, seed=0)
        for control, texts in answers.items()
    }
