"""The report's samples: each question with every run's answer, and small pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import RecordError
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.record import RunRecord
from encoder_bench.metrics.metric import recorded_metric
from encoder_bench.results.compare import RIGHT
from encoder_bench.results.report.content import Chapter
from encoder_bench.results.thumbnails import data_uri
from encoder_bench.tasks.predictions import (
    Prediction,
    has_predictions,
    predictions_path,
    read_predictions,
)


def browse(
    results: Path, chapters: Sequence[Chapter], *, limit: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return, for each table, its runs and at most `limit` samples per task with their answers.

    Samples are chosen by a hash of their id, so that every report shows the same ones.

    Returns:
        A JSON list (one entry per table: `heading`, `runs`, `second`, the best run of another
        encoder than the first, `tasks` -> samples, `right` -> from which score on the task's
        answers are right, None for graded ones), and why some predictions are not shown.
    """
    tables: list[dict[str, Any]] = []
    problems = _missing(results, [run for c in chapters for row in c.rows for run in row.records])
    for chapter in chapters:
        runs = [(row, record) for row in chapter.rows for record in row.records]
        labels = [row.label for row, _ in runs]
        records = [record for _, record in runs]
        entry: dict[str, Any] = {
            "heading": chapter.table.heading,
            "runs": [f"{row.name}, seed {record.seed}" for row, record in runs],
            "second": next((n for n, label in enumerate(labels) if label != labels[0]), 0),
            "right": {},
            "tasks": {},
        }
        for task in dict.fromkeys(name for record in records for name in record.tasks):
            answers = [_answers(results, record, task, problems) for record in records]
            samples = _samples(answers, records, task, limit)
            if samples:
                entry["tasks"][task] = samples
                primary = next(r.tasks[task].primary for r in records if task in r.tasks)
                entry["right"][task] = None if recorded_metric(primary).graded else RIGHT
        tables.append(entry)
    return tables, problems


def thumbnails(
    tables: Sequence[dict[str, Any]], images: Mapping[str, Path], *, budget_bytes: int
) -> dict[str, str]:
    """Return image id -> data URI for the images of `browse`, until the budget is spent.

    An id without a file, or with an unreadable one, has no picture.
    """
    shown: dict[str, str] = {}
    samples = (s for entry in tables for task in entry["tasks"].values() for s in task)
    for image_id in dict.fromkeys(sample["image"] for sample in samples):
        uri = data_uri(images[image_id]) if image_id in images else None
        budget_bytes -= len(uri or "")
        if budget_bytes < 0:
            break
        if uri:
            shown[image_id] = uri
    return shown


def _missing(results: Path, records: Sequence[RunRecord]) -> list[str]:
    """Return one line about the predictions that are not there, however many, or none."""
    files = [predictions_path(results, run, task) for run in records for task in run.tasks]
    lost = [path for path in files if not has_predictions(path)]
    if not lost:
        return []
    where = results / "predictions"
    return [
        f"{len(lost)} of {len(files)} files are not in {where}, as {lost[0].relative_to(where)}"
    ]


def _answers(
    results: Path, record: RunRecord, task: str, problems: list[str]
) -> dict[str, Prediction]:
    if task not in record.tasks or not has_predictions(predictions_path(results, record, task)):
        return {}
    try:
        return {each.sample_id: each for each in read_predictions(results, record, task)}
    except RecordError as error:
        problems.append(str(error))
        return {}


def _samples(
    answers: Sequence[dict[str, Prediction]], records: Sequence[RunRecord], task: str, limit: int
) -> list[dict[str, Any]]:
    known = {key: prediction for found in reversed(answers) for key, prediction in found.items()}
    metrics = [record.tasks[task].primary if task in record.tasks else "" for record in records]
    return [
        {
            "id": key,
            "image": str(known[key].image_id),
            "question": known[key].question,
            "references": list(known[key].references),
            "answers": [
                _answer(found.get(key), metric)
                for found, metric in zip(answers, metrics, strict=True)
            ],
        }
        for key in sorted(sorted(known, key=hash_text)[:limit])
    ]


def _answer(prediction: Prediction | None, primary: str) -> dict[str, Any] | None:
    if prediction is None:
        return None
    score = prediction.scores.get(primary)
    return {
        "text": prediction.prediction,
        "score": None if score is None else round(score, 4),
        "unparsed": prediction.outcome == "unparsable",
    }
