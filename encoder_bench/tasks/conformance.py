"""Any model's predictions file under every variant of a task's metrics, side by side.

What belongs here: the answer to "why is my score not the paper's". Answers are read from a file
instead of asked of a model; everything else is the runner's own scoring.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder_bench.data.sample import Sample
from encoder_bench.errors import DataError
from encoder_bench.recipes import TaskRecipe
from encoder_bench.record_parts import Score
from encoder_bench.tasks.measures import Measure, score_of
from encoder_bench.tasks.registry import find_runner

_IDS = ("sample_id", "question_id", "image_id", "id", "index")
_TEXTS = ("prediction", "answer", "caption", "response", "output", "text")


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """One answer: what it was read as, and its score under each metric that a sample has."""

    sample: Sample
    prediction: str
    parsed: str | None
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Conformance:
    """Scores by metric, and the samples behind them."""

    task: str
    primary: str
    scores: dict[str, Score]
    samples: tuple[ScoredSample, ...]
    missing: tuple[str, ...]
    surplus: int

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
        stem = self.primary
        return [name for name in self.scores if name != stem and name.startswith(f"{stem}_")]


def score_predictions(
    task: str,
    recipe: TaskRecipe,
    samples: Sequence[Sample],
    file: Path,
    *,
    seed: int = 0,
    missing_is_wrong: bool = False,
) -> Conformance:
    """Score a predictions file under every metric that the task's runner has.

    Args:
        task: the task's name.
        recipe: its recipe; all metrics of its runner are computed, not only the recipe's.
        samples: the test split.
        file: JSON (a list) or JSON lines, each row with an id and an answer; or CSV with a header.
        seed: of the bootstrap.
        missing_is_wrong: score a sample without an answer as an empty one, instead of refusing.

    Raises:
        DataError: the file is malformed, an answer stands twice, none fits, or some are missing.
    """
    runner = find_runner(recipe.runner)
    answers = read_answers(file)
    found: dict[str, str] = {}
    for sample in samples:
        key = next((key for key in _keys(sample) if key in answers), None)
        if key is not None:
            found[sample.sample_id] = answers.pop(key)
    if not found:
        raise DataError(
            f"{file}: no id of it is one of task '{task}', whose ids look like "
            f"{', '.join(sorted(_keys(samples[0])))}"
        )
    missing = [s.sample_id for s in samples if s.sample_id not in found]
    if missing and not missing_is_wrong:
        raise DataError(
            f"{file}: no answer to {len(missing)} of {len(samples)} samples, the first "
            f"{missing[0]}; --missing-is-wrong scores them as empty"
        )
    texts = [found.get(sample.sample_id, "") for sample in samples]
    measured = runner.measure(samples, texts, runner.METRICS)
    scores = {
        name: score_of(measure, samples, seed=seed) for name, measure in measured.measures.items()
    }
    rows = tuple(
        ScoredSample(
            sample,
            texts[index],
            measured.parsed[index],
            dict(_sample_scores(measured.measures, index)),
        )
        for index, sample in enumerate(samples)
    )
    return Conformance(task, recipe.primary, scores, rows, tuple(missing), len(answers))


def read_answers(file: Path) -> dict[str, str]:
    """Return answers by id, as text, from JSON, JSON lines or CSV.

    Raises:
        DataError: malformed, without an id or an answer, or an id twice; names the row.
    """
    found: dict[str, str] = {}
    for place, row in _rows(file):
        if row.get("control"):
            continue  # our own predictions files hold the blind controls' answers as well
        identifier = next((row[name] for name in _IDS if row.get(name) is not None), None)
        text = next((row[name] for name in _TEXTS if name in row), None)
        if identifier is None or text is None:
            raise DataError(
                f"{place}: needs one of {', '.join(_IDS)} and one of {', '.join(_TEXTS)}; it has "
                f"{', '.join(map(str, row))}"
            )
        if str(identifier) in found:
            raise DataError(f"{place}: a second answer to {identifier}")
        found[str(identifier)] = str(text)
    if not found:
        raise DataError(f"{file}: no answers in it")
    return found


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    if file.suffix == ".csv":
        import csv

        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2):
            yield f"{file}:{number}", row
        return
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise DataError(f"{file}: not valid JSON ({error})") from error
        entries: Iterator[tuple[str, Any]] = (
            (f"{file}, row {index}", row) for index, row in enumerate(rows)
        )
    else:
        lines = enumerate(text.split("\n"), start=1)
        entries = ((f"{file}:{number}", line) for number, line in lines if line.strip())
    for place, row in entries:
        if isinstance(row, str):
            try:
                row = json.loads(row)
            except ValueError as error:
                raise DataError(f"{place}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{place}: not an object")
        yield place, row


def _keys(sample: Sample) -> tuple[str, ...]:
    """Return the names under which a file may answer a sample: ours, and the official one."""
    return sample.sample_id, sample.sample_id.partition("/")[2]


def _sample_scores(measures: dict[str, Measure], index: int) -> Iterator[tuple[str, float]]:
    for name, measure in measures.items():
        if measure.reason is None:
            value = float(measure.statistic(measure.values[index : index + 1])[0])
            if value == value:
                yield name, value
