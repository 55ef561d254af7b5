"""A comparison of two runs as printable tables, and as HTML with the flipped pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from encoder_bench.base.record import RunRecord
from encoder_bench.results.compare import MetricComparison, RunComparison, TaskComparison
from encoder_bench.results.formats import templates
from encoder_bench.results.page import NOT_AVAILABLE, PRIMARY, SAMPLES, Page, text_page
from encoder_bench.results.thumbnails import data_uri

MAX_FLIPS = 100
"""Samples that the page shows per task, largest changes first."""
_DIFFERENCE = ("A", "B", "B − A", "95% interval", "p")
_HEADER = (
    "Task", PRIMARY, *_DIFFERENCE, "both right", "only A", "only B", "neither", "flipped", SAMPLES,
)  # fmt: skip
_PAIRED = (
    "Scores are over the samples that both sides answered. Interval and p are those of the paired "
    "difference over images and seeds. 50 points and more count as right; captions and errors are "
    "graded, neither right nor wrong."
)
_WHOLE = (
    "Every metric over the samples that both sides answered, all answers scored again by this "
    "version; interval and p as above, of the whole score, BLEU's and F1's too."
)
_ONE_SEED = (
    "One seed {}: the variance of seeds is not known, and interval and p are about images alone."
)


def task_page(comparison: RunComparison) -> Page:
    """Return the comparison of primary metrics as one printable table with its footnotes."""
    notes = [_PAIRED]
    sides = (("A", comparison.runs_a), ("B", comparison.runs_b))
    if single := [f"of {side}" for side, runs in sides if len(runs) == 1]:
        notes.append(_ONE_SEED.format("a side" if len(single) > 1 else single[0]))
    if comparison.differing:
        differing = ", ".join(comparison.differing)
        notes.append(f"These runs differ in more than the encoder: {differing}.")
    rows = []
    for task in comparison.tasks:
        right = ["–"] * 4 if task.right is None else list(map(str, astuple(task.right)))
        counts = [*right, str(len(task.flips)), str(task.samples)]
        rows.append([task.column, task.metric, *_difference(task, 1), *counts])
        if task.only_a or task.only_b:
            notes.append(
                f"{task.column}: {task.only_a} samples only in A, {task.only_b} only in B."
            )
        if task.reason:
            notes.append(f"{task.column}: {task.reason}.")
    title = f"A: {side_title(comparison.runs_a)}; B: {side_title(comparison.runs_b)}"
    return text_page(title, _HEADER, rows, notes)


def metric_page(comparison: RunComparison) -> Page:
    """Return every metric of every task as one printable table, differences paired by image."""
    rows, notes = [], [_WHOLE]
    for task in comparison.tasks:
        for each in task.metrics:
            rows.append([task.task, each.metric, *_difference(each, 2)])
            if each.difference is None:
                notes.append(f"{task.task}, {each.metric}: {each.reason}.")
    return text_page("Every metric", ("Task", "Metric", *_DIFFERENCE), rows, notes)


def _difference(compared: TaskComparison | MetricComparison, digits: int) -> list[str]:
    """Return A, B, B − A, interval and p."""
    scores = (compared.score_a, compared.score_b)
    texts = [NOT_AVAILABLE if score is None else f"{score:.{digits}f}" for score in scores]
    found = compared.difference
    if found is None:
        return texts + [NOT_AVAILABLE] * 3
    return [*texts, f"{found.value:+.{digits}f}", found.interval(digits), f"{found.p:.2g}"]


def as_json(comparison: RunComparison) -> dict[str, Any]:
    """Return the comparison as a JSON object, flipped samples included."""
    return {
        "a": [run.run_id for run in comparison.runs_a],
        "b": [run.run_id for run in comparison.runs_b],
        "differing": list(comparison.differing),
        "tasks": [asdict(task) for task in comparison.tasks],
    }


def side_title(runs: Sequence[RunRecord]) -> str:
    """Return `DINOv2, joint, seed 0 (1a2b3c4d)`."""
    seeds = ", ".join(f"seed {run.seed} ({run.run_id[:8]})" for run in runs)
    return f"{runs[0].encoder.display_name}, {runs[0].mode}, {seeds}"


def to_html(comparison: RunComparison, images: Mapping[str, Path]) -> str:
    """Return the comparison as one self-contained HTML page with the samples that flipped.

    `images` are `str(image_id)` -> image file; samples without one have no picture.
    """
    shown = {str(f.image_id) for task in comparison.tasks for f in task.flips[:MAX_FLIPS]}
    template = templates().get_template("compare.html.j2")
    return template.render(
        pages=(task_page(comparison), metric_page(comparison)),
        tasks=comparison.tasks,
        limit=MAX_FLIPS,
        pictures={name: data_uri(path) for name, path in images.items() if name in shown},
    )
