"""The rows of one table: encoders by half, and the blind rows under them.

What belongs here: what stands in a row's cells. Ranks, optional columns and files are `table.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from encoder_bench.results.columns import (
    AVERAGE,
    ENCODER,
    HALF,
    IMAGES,
    KIND,
    MARKS,
    RUNS,
    SEEDS,
    SETTING,
    SUPERVISION,
    Source,
    half_width_column,
    images_column,
    lift_column,
    reason_column,
    samples_column,
    score_sources,
)
from encoder_bench.results.estimates import (
    AVERAGED,
    Estimate,
    average,
    from_score,
    lift,
    mean_if_whole,
    missing,
    over_seeds,
)
from encoder_bench.results.grouping import TableGroup, TableRow

_OF_THE_MODEL = {"no-image": "no image", "shuffled-images": "shuffled images"}
_OF_THE_DATA = {"constant": "constant answer", "majority": "majority per question"}

Sources = dict[str, Source]
"""Column -> where its score stands in one of a row's records."""


def table_rows(group: TableGroup, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a table's rows in order, each as column -> content, with its runs in `_records`."""
    sources = [[score_sources(record) for record in row.records] for row in group.rows]
    rows = list(zip(group.rows, sources, strict=True))
    for joint in (False, True):
        half = [(row, own) for row, own in rows if row.joint == joint]
        for row, own in half:
            yield _encoder_row(group, row, own, columns)
        for control, label in _OF_THE_MODEL.items():
            blind = [_control_estimates(own, control, columns) for _, own in half]
            yield from _blind_row(group, joint, label, blind, columns)
    for control, label in _OF_THE_DATA.items():
        blind = [_control_estimates(own, control, columns) for own in sources]
        yield from _blind_row(group, None, label, blind, columns)


def _encoder_row(
    group: TableGroup, row: TableRow, sources: Sequence[Sources], columns: Sequence[str]
) -> dict[str, Any]:
    first = row.records[0]
    estimates = {
        column: over_seeds([_own_score(each.get(column)) for each in sources]) for column in columns
    }
    marks = [] if row.pretrained else ["random weights"]
    shares = [
        f"{column} {100 * estimate.seed_share:.0f}%"
        for column, estimate in estimates.items()
        if estimate.seed_share is not None
    ]
    if shares:
        marks.append(f"share of the variance that comes from seeds: {', '.join(shares)}")
    if row.superseded:
        marks.append(f"replaces {len(row.superseded)} older run(s) of the same seed")
    return {
        SETTING: group.heading,
        HALF: row.joint,
        KIND: "encoder",
        SUPERVISION: first.encoder.supervision,
        ENCODER: row.label,
        IMAGES: first.encoder.pretraining_images if row.pretrained else "none",
        SEEDS: len(row.records),
        MARKS: "; ".join(marks),
        RUNS: " ".join(record.run_id for record in row.records),
        "_records": row.records,
        **_cells(estimates),
        **_lifts(sources, columns),
    }


def _own_score(source: Source | None) -> Estimate:
    if source is None:
        return missing("task not run")
    score = source.scores.metrics.get(source.metric)
    return missing("metric not computed") if score is None else from_score(score)


def _lifts(sources: Sequence[Sources], columns: Sequence[str]) -> dict[str, float | None]:
    """Return each score's lift over blind, the mean over runs; that of Avg is the mean of its."""
    lifts = {
        column: mean_if_whole(
            [
                lift(each[column].scores, each[column].metric) if column in each else None
                for each in sources
            ]
        )
        for column in columns
    }
    lifts[AVERAGE] = mean_if_whole([lifts[column] for column in AVERAGED])
    return {lift_column(column): value for column, value in lifts.items()}


def _control_estimates(
    sources: Sequence[Sources], control: str, columns: Sequence[str]
) -> dict[str, Estimate]:
    """Return a row's scores under one blind control; columns without it are left out."""
    found: dict[str, Estimate] = {}
    for column in columns:
        scores = [
            from_score(each[column].scores.controls[control][each[column].metric])
            for each in sources
            if column in each
            and each[column].metric in each[column].scores.controls.get(control, {})
        ]
        if len(scores) == len(sources):
            found[column] = over_seeds(scores)
    return found


def _blind_row(
    group: TableGroup,
    joint: bool | None,
    label: str,
    blind: Sequence[dict[str, Estimate]],
    columns: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Yield the mean of the rows' blind scores, or nothing where no row has any."""
    if not any(blind):
        return
    estimates = {
        column: _mean([each[column] for each in blind if column in each]) for column in columns
    }
    yield {
        SETTING: group.heading,
        HALF: joint,
        KIND: "blind",
        SUPERVISION: "",
        ENCODER: label,
        IMAGES: "",
        SEEDS: None,
        MARKS: "",
        RUNS: "",
        "_records": (),
        **_cells(estimates),
    }


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over rows; the same questions for all, so half-widths are averaged too."""
    known = [each for each in estimates if each.value is not None]
    if not known:
        return missing(estimates[0].reason or "not computed" if estimates else "control not run")
    widths = [each.half_width for each in known if each.half_width is not None]
    return Estimate(
        math.fsum(each.value for each in known if each.value is not None) / len(known),
        math.fsum(widths) / len(widths) if len(widths) == len(known) else None,
        min(each.samples for each in known),
        min(each.images for each in known),
    )


def _cells(estimates: dict[str, Estimate]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for column, estimate in {**estimates, AVERAGE: average(estimates)}.items():
        cells[column] = estimate.value
        cells[half_width_column(column)] = estimate.half_width
        cells[samples_column(column)] = estimate.samples or None
        cells[images_column(column)] = estimate.images or None
        cells[reason_column(column)] = estimate.reason if estimate.value is None else ""
    return cells
