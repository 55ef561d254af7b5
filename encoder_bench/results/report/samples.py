"""The report's browser of samples: each question with every run's answer beside it.

What belongs here: choosing samples, and shrinking their images to data URIs. The page's script
shows them; all of it is text until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import RecordError
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.record import RunRecord
from encoder_bench.results.grouping import TableGroup
from encoder_bench.results.report.content import row_name
from encoder_bench.results.thumbnails import data_uri
from encoder_bench.tasks.predictions import Prediction, read_predictions


def browse(
    results: Path, groups: Sequence[TableGroup], *, limit: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return, for each table, its runs and at most `limit` samples a task with their answers.

    Samples are chosen by a hash of their id, so that every report shows the same ones.

    Returns:
        A JSON list (one entry a table: `heading`, `runs`, `tasks` -> samples, `graded` -> whether
        the task's answers are right or wrong), and why predictions of some run are not shown.
    """
    tables, problems = [], []
    for group in groups:
        runs = [
            (_run_name(row_name(row), record, seeds=len(row.records)), record)
            for row in group.rows
            for record in row.records
        ]
        tasks = {}
        for task in dict.fromkeys(name for _, record in runs for name in record.tasks):
            answers, lost = _answers(results, [record for _, record in runs], task)
            problems += lost
            samples = _samples(answers, runs, task, limit)
            if samples:
                tasks[task] = samples
        tables.append(
            {
                "heading": group.heading,
                "runs": [name for name, _ in runs],
                "graded": {task: _is_graded(task, runs) for task in tasks},
                "tasks": tasks,
            }
        )
    return tables, problems


def thumbnails(
    tables: Sequence[dict[str, Any]], images: Mapping[str, Path], *, budget_bytes: int
) -> dict[str, str]:
    """Return image id -> JPEG data URI for the images of chosen samples, within a budget.

    Args:
        tables: what `browse` returned.
        images: `str(image_id)` -> file; an id that is not there has no picture.
        budget_bytes: the data URIs' length in all; images past it are left out.
    """
    wanted = dict.fromkeys(
        str(sample["image"])
        for entry in tables
        for samples in entry["tasks"].values()
        for sample in samples
    )
    shown: dict[str, str] = {}
    spent = 0
    for image_id in wanted:
        path = images.get(image_id)
        uri = data_uri(path) if path is not None else None
        if uri is None:
            continue
        if spent + len(uri) > budget_bytes:
            break
        shown[image_id] = uri
        spent += len(uri)
    return shown


def _run_name(name: str, record: RunRecord, *, seeds: int) -> str:
    return f"{name}, seed {record.seed}" if seeds > 1 else name


def _is_graded(task: str, runs: Sequence[tuple[str, RunRecord]]) -> bool:
    """Return whether a task's answers are right or wrong; captions are neither."""
    definition = next(r.tasks[task].definition for _, r in runs if task in r.tasks)
    return bool(definition.get("runner") != "captioning")


def _answers(
    results: Path, records: Sequence[RunRecord], task: str
) -> tuple[list[dict[str, Prediction]], list[str]]:
    answers: list[dict[str, Prediction]] = []
    problems = []
    for record in records:
        found: dict[str, Prediction] = {}
        if task in record.tasks:
            try:
                read = read_predictions(results, record, task)
                found = {prediction.sample_id: prediction for prediction in read}
            except RecordError as error:
                problems.append(str(error))
        answers.append(found)
    return answers, problems


def _samples(
    answers: Sequence[dict[str, Prediction]],
    runs: Sequence[tuple[str, RunRecord]],
    task: str,
    limit: int,
) -> list[dict[str, Any]]:
    first: dict[str, Prediction] = {}
    for found in answers:
        for sample_id, prediction in found.items():
            first.setdefault(sample_id, prediction)
    chosen = sorted(first, key=hash_text)[:limit]
    primaries = [record.tasks[task].primary if task in record.tasks else "" for _, record in runs]
    return [
        {
            "id": sample_id,
            "image": str(first[sample_id].image_id),
            "question": first[sample_id].question,
            "references": list(first[sample_id].references),
            "answers": [
                _answer(found.get(sample_id), primary)
                for found, primary in zip(answers, primaries, strict=True)
            ],
        }
        for sample_id in sorted(chosen)
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
