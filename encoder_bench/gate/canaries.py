"""Awkward answers, scored once and kept: what a model's own answers may never try.

What belongs here: writing a right answer in ways that a metric must read alike or must not (in
capitals, inside a sentence, as a word), and what each metric says of them. A small model answers
in lower case and nothing else, so that a metric that lower-cases too little would pass on its
answers alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from encoder_bench.base.errors import RecordError
from encoder_bench.base.files import write_text
from encoder_bench.base.hashing import hash_json, hash_text
from encoder_bench.base.record import RunRecord
from encoder_bench.gate.verdicts import RunVerdict, TaskVerdict
from encoder_bench.metrics.metric import recorded_metric
from encoder_bench.results.grouping import data_key
from encoder_bench.tasks.predictions import Prediction, read_predictions
from encoder_bench.tasks.rescore import measure_again

SAMPLES = 12
"""Right answers a task that are written awkwardly."""

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = frozenset(str(number) for number in range(len(_WORDS)))

WRITINGS: Mapping[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "in capitals": str.upper,
    "in lower case": str.lower,
    "with a capital and a full stop": lambda text: f"{text[:1].upper()}{text[1:]}.",
    "with an article": lambda text: f"The {text}",
    "inside a sentence": lambda text: f"I think it is {text}, in this image",
    "a number as a word": lambda text: _WORDS[int(text)] if text in _DIGITS else text,
    "with spaces around it": lambda text: f"  {text} \n",
    "twice": lambda text: f"{text} {text}",
    "nothing": lambda text: "",
}

Scores = dict[str, dict[str, list[float | None]]]
"""Writing -> metric -> the score of each sample."""


def canary_key(record: RunRecord, task: str) -> str:
    """Return what runs share whose canaries are the same: task, recipe, test data, limit."""
    content = {
        "definition": record.tasks[task].definition,
        "data": data_key(record.data),
        "limit": record.limit,
    }
    return f"{task} {hash_json(content)[:16]}"


def canary_scores(folder: Path, record: RunRecord, task: str) -> Scores:
    """Return what each metric says, today, of a few right answers written awkwardly.

    Metrics of Java programs are left out, whose text is prepared by programs of their own.

    Raises:
        RecordError: predictions are missing or damaged, or the recipe cannot be read.
    """
    predictions = read_predictions(folder, record, task)
    chosen = sorted(predictions, key=lambda each: hash_text(each.sample_id))[:SAMPLES]
    names = record.tasks[task].metrics
    java = [name for name in names if recorded_metric(name).backend == "java"]
    found: Scores = {}
    for name, write in WRITINGS.items():
        answers = [_rewritten(each, write) for each in chosen]
        measures = measure_again(record, task, answers, leave_out=java).measures
        found[name] = {
            metric: measure.sample_scores() or [None] * len(answers)
            for metric, measure in measures.items()
        }
    return found


def write_canaries(folder: Path, records: Iterable[RunRecord], fresh: Iterable[str]) -> None:
    """Write `FOLDER/canaries.json`: newly scored for accepted runs, kept for all others.

    Args:
        folder: the baseline's folder.
        records: every run of the baseline.
        fresh: ids of the runs accepted now; what they share with others is scored again.
    """
    known = read_canaries(folder)
    accepted = set(fresh)
    kept: dict[str, Scores] = {}
    for record in sorted(records, key=lambda record: record.run_id not in accepted):
        for task in record.tasks:
            key = canary_key(record, task)
            if key in kept:
                continue
            again = record.run_id in accepted or key not in known
            kept[key] = _scored_or_nothing(folder, record, task) if again else known[key]
    body = dict(sorted(kept.items()))
    text = json.dumps({"sha256": hash_json(body), "canaries": body}, ensure_ascii=False)
    write_text(folder / "canaries.json", text + "\n")


def read_canaries(folder: Path) -> dict[str, Scores]:
    """Return the kept scores by `canary_key`; none where there is no file.

    Raises:
        RecordError: the file is damaged or edited.
    """
    path = folder / "canaries.json"
    if not path.is_file():
        return {}
    try:
        outer = json.loads(path.read_text(encoding="utf-8"))
        body, checksum = outer["canaries"], outer["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: not a whole file of canaries ({error})") from error
    if hash_json(body) != checksum:
        raise RecordError(f"{path}: checksum and content disagree; it was edited or damaged")
    return dict(body)


def check_canaries(folder: Path, records: Mapping[str, RunRecord]) -> list[RunVerdict]:
    """Hold today's reading of awkward answers against the one that was accepted.

    Args:
        folder: the baseline's folder.
        records: its runs by identity; each set of canaries is told under the first that has it.

    Raises:
        RecordError: the file, a record's recipe or predictions are damaged.
    """
    known = read_canaries(folder)
    verdicts, seen = [], set[str]()
    for name, record in records.items():
        for task in record.tasks:
            key = canary_key(record, task)
            if key in seen or not known.get(key):
                continue
            seen.add(key)
            failures = tuple(_differences(known[key], canary_scores(folder, record, task)))
            verdict = TaskVerdict(f"{task}, awkward answers", None, failures)
            verdicts.append(RunVerdict(name, record.run_id, None, (), (verdict,)))
    return verdicts


def _rewritten(prediction: Prediction, write: Callable[[str], str]) -> Prediction:
    right = prediction.references[0] if prediction.references else ""
    return prediction.model_copy(update={"prediction": write(right), "choice": None})


def _scored_or_nothing(folder: Path, record: RunRecord, task: str) -> Scores:
    """Return no scores for a task whose recipe or runner this version does not know."""
    try:
        return canary_scores(folder, record, task)
    except RecordError:
        return {}


def _differences(accepted: Scores, now: Scores) -> Iterable[str]:
    for writing, metrics in accepted.items():
        for metric, scores in metrics.items():
            fresh = now.get(writing, {}).get(metric)
            if fresh is None:
                yield f"{metric} is gone"
            elif changed := [pair for pair in zip(scores, fresh, strict=True) if _differ(*pair)]:
                before, after = changed[0]
                yield (
                    f"{metric} reads {len(changed)} of {len(scores)} right answers written "
                    f"{writing!r} otherwise: {_text(before)} was accepted, {_text(after)} now"
                )


def _differ(before: float | None, after: float | None) -> bool:
    if before is None or after is None:
        return before is not after
    return abs(before - after) > 1e-6


def _text(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.4g}"
