"""A comparison of two runs, laid out for every format, and as HTML with the flipped pictures.

What belongs here: words and cells; the figures come from `compare.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from encoder_bench.base.record import RunRecord
from encoder_bench.results.compare import Flip, RunComparison, TaskComparison
from encoder_bench.results.formats.html import render_page
from encoder_bench.results.layout import NOT_AVAILABLE, Cell, Line, Page
from encoder_bench.results.thumbnails import data_uri

_HEADER = (
    "Task", "Metric", "A", "B", "B less A", "95% interval", "p", "both right", "only A", "only B",
    "neither", "McNemar p", "flipped", "samples",
)  # fmt: skip


def lay_out(comparison: RunComparison) -> Page:
    """Return the comparison as one printable table with its footnotes."""
    rows = tuple(
        Line(_cells(task), blind=False, opens=index == 0)
        for index, task in enumerate(comparison.tasks)
    )
    notes = [
        "Scores are over the samples that both runs answered. The interval is a bootstrap over "
        "images, p that of swapping A and B image by image. 50 points and more count as right, "
        "and McNemar's p is the exact one; captions are neither right nor wrong.",
    ]
    if comparison.differing:
        notes.append(
            f"These runs differ in more than the encoder: {', '.join(comparison.differing)}."
        )
    for task in comparison.tasks:
        if task.only_a or task.only_b:
            notes.append(
                f"{task.column}: {task.only_a} samples only in A, {task.only_b} only in B."
            )
        if task.reason:
            notes.append(f"{task.column}: {task.reason}.")
    return Page(
        f"A: {run_title(comparison.run_a)}; B: {run_title(comparison.run_b)}",
        tuple(Cell(name, number=index > 1) for index, name in enumerate(_HEADER)),
        rows,
        tuple(("", note) for note in notes),
    )


def lay_out_metrics(comparison: RunComparison) -> Page:
    """Return every metric of every task as one printable table, differences paired by image."""
    lines: list[Line] = []
    notes: dict[str, None] = {
        "Every metric over the samples that both runs answered, both runs' answers measured again "
        "by this version; interval and p as above, of the whole score, BLEU's and F1's too.": None
    }
    for task in comparison.tasks:
        for number, metric in enumerate(task.metrics):
            scores = (metric.score_a, metric.score_b)
            texts = [NOT_AVAILABLE if score is None else f"{score:.2f}" for score in scores]
            found = metric.difference
            if found is None:
                texts += [NOT_AVAILABLE] * 3
                notes[f"{task.task}, {metric.metric}: {metric.reason}."] = None
            else:
                texts += [f"{found.value:+.2f}", found.interval(2), f"{found.p:.2g}"]
            cells = (Cell(task.task), Cell(metric.metric), *(Cell(t, number=True) for t in texts))
            lines.append(Line(cells, blind=False, opens=number == 0))
    header = ("Task", "Metric", "A", "B", "B less A", "95% interval", "p")
    return Page(
        "Every metric",
        tuple(Cell(name, number=index > 1) for index, name in enumerate(header)),
        tuple(lines),
        tuple(("", note) for note in notes),
    )


def as_json(comparison: RunComparison) -> dict[str, Any]:
    """Return the comparison as a JSON object, flipped samples included."""
    return {
        "a": comparison.run_a.run_id,
        "b": comparison.run_b.run_id,
        "differing": list(comparison.differing),
        "tasks": [asdict(task) for task in comparison.tasks],
    }


def run_title(record: RunRecord) -> str:
    """Return `DINOv2, joint, seed 0 (1a2b3c4d)`."""
    mode = "joint" if record.joint else "frozen"
    return f"{record.encoder.display_name}, {mode}, seed {record.seed} ({record.run_id[:8]})"


def to_html(
    comparison: RunComparison, images: Mapping[str, Path] | None = None, *, flips: int = 100
) -> str:
    """Return the comparison as one self-contained HTML page with the samples that flipped.

    Args:
        comparison: what `compare_runs` returned.
        images: `str(image_id)` -> image file; without it, samples have no pictures.
        flips: at most so many samples a task, largest changes first.
    """
    style = (resources.files("encoder_bench.results.report") / "style.css").read_text("utf-8")
    sections = "\n".join(
        _flips_section(task, images or {}, flips) for task in comparison.tasks if task.flips
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>Two runs compared</title>\n<style>\n{style}\n</style>\n</head>\n<body>\n"
        f"<h1>Two runs compared</h1>\n{render_page(lay_out(comparison))}\n"
        f"{render_page(lay_out_metrics(comparison))}\n{sections}\n"
        "</body>\n</html>\n"
    )


def _cells(task: TaskComparison) -> tuple[Cell, ...]:
    difference, right = task.difference, task.right
    scores = (task.score_a, task.score_b)
    texts = [NOT_AVAILABLE if score is None else f"{score:.1f}" for score in scores]
    if difference is None:
        texts += [NOT_AVAILABLE] * 3
    else:
        texts.append(f"{difference.value:+.1f}")
        texts.append(difference.interval(1))
        texts.append(f"{difference.p:.2g}")
    if right is None:
        texts += ["–"] * 5
    else:
        counts = (right.both, right.only_a, right.only_b, right.neither)
        texts += [str(count) for count in counts] + [f"{right.p:.2g}"]
    texts += [str(len(task.flips)), str(task.samples)]
    return (Cell(task.column), Cell(task.metric), *(Cell(text, number=True) for text in texts))


def _flips_section(task: TaskComparison, images: Mapping[str, Path], limit: int) -> str:
    cards = "\n".join(_card(flip, images.get(str(flip.image_id))) for flip in task.flips[:limit])
    shown = min(limit, len(task.flips))
    title = f"{task.column}: {shown} of {len(task.flips)} samples that flipped"
    return f"<h2>{escape(title)}</h2>\n{cards}"


def _card(flip: Flip, image: Path | None) -> str:
    uri = data_uri(image) if image is not None else None
    picture = (
        f'<img src="{uri}" alt="image {escape(str(flip.image_id))}" loading="lazy">'
        if uri
        else '<div class="none">no picture</div>'
    )
    people = " · ".join(dict.fromkeys(flip.references))
    return (
        f'<article class="sample"><div>{picture}</div><div>'
        f"<h3>{escape(flip.question or 'Caption')}</h3>"
        f'<div class="id">{escape(flip.sample_id)}</div><div>People: {escape(people)}</div><table>'
        f"{_answer('A', flip.prediction_a, flip.score_a)}"
        f"{_answer('B', flip.prediction_b, flip.score_b)}"
        "</table></div></article>"
    )


def _answer(run: str, text: str, score: float) -> str:
    return f'<tr><td>{run}</td><td>{escape(text)}</td><td class="n">{score:g}</td></tr>'
