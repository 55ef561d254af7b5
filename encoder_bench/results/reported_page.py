"""Ours beside the published figures, as printable tables and in every format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from encoder_bench.base.errors import RecordError
from encoder_bench.base.files import write_text
from encoder_bench.base.record import RunRecord
from encoder_bench.results.columns import ENCODER, JOINT, SETTING
from encoder_bench.results.formats import to_html, to_json, to_latex, to_markdown
from encoder_bench.results.page import NOT_AVAILABLE, Page, mode_name, text_page
from encoder_bench.results.reported import (
    COLUMNS,
    compare_reported,
    footnotes,
    load_reported,
    rank_agreement,
)


def reported_pages(records: Sequence[RunRecord]) -> list[Page]:
    """Return printable tables of ours against published: figures, then agreement of ranks.

    Raises:
        RecordError: no record is of a family that was published.
    """
    comparison = compare_reported(records)
    if comparison.empty:
        families = ", ".join(sorted(set(load_reported()["Family"])))
        raise RecordError(f"no record is of a published encoder's family ({families})")
    agreement = rank_agreement(comparison)
    pages = []
    for setting, part in comparison.groupby(SETTING, sort=False):
        pages.append(_figures_page(str(setting), part))
        pages.append(_agreement_page(str(setting), agreement[agreement[SETTING] == setting]))
    return pages


def _figures_page(setting: str, part: pd.DataFrame) -> Page:
    rows = [
        [mode_name(bool(joint)), str(encoder), *(_figure(row) for row in cells.to_dict("records"))]
        for (joint, encoder), cells in part.groupby([JOINT, ENCODER], sort=False)
    ]
    general = "Each cell: ours ± half of its 95% interval / published (difference)."
    header = (JOINT, ENCODER, *COLUMNS)
    return text_page(f"Ours and published · {setting}", header, rows, [general, *footnotes()])


def _figure(row: dict[Any, Any]) -> str:
    if pd.isna(row["Ours"]):
        return f"{NOT_AVAILABLE} / {row['Published']:.1f}"
    width = "" if pd.isna(row["±"]) else f" ±{row['±']:.1f}"
    return f"{row['Ours']:.1f}{width} / {row['Published']:.1f} ({row['Difference']:+.1f})"


def _agreement_page(setting: str, agreement: pd.DataFrame) -> Page:
    rows, notes = [], ["95% intervals in brackets, through Fisher's z."]
    for row in agreement.to_dict("records"):
        correlations = (_interval(row, "Spearman"), _interval(row, "Kendall"))
        rows.append([mode_name(row[JOINT]), row["Column"], str(row["Encoders"]), *correlations])
        if row["Reason"]:
            mode = "joint" if row[JOINT] else "frozen"
            notes.append(f"{row['Column']}, {mode}: {row['Reason']}.")
    header = (JOINT, "Column", "Encoders", "Spearman", "Kendall")
    return text_page(f"Agreement of ranks · {setting}", header, rows, notes)


def _interval(row: dict[Any, Any], name: str) -> str:
    if pd.isna(row[name]):
        return NOT_AVAILABLE
    if pd.isna(row[f"{name} low"]):
        return f"{row[name]:.2f}"
    return f"{row[name]:.2f} [{row[f'{name} low']:.2f}, {row[f'{name} high']:.2f}]"


def reported_texts(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return the comparison with the published figures as text, by format.

    CSV holds one row per encoder and column; JSON also the rank correlations and the footnotes.

    Raises:
        RecordError: no record is of a family that was published.
    """
    pages = reported_pages(records)
    figures = compare_reported(records)
    agreement = rank_agreement(figures)
    body = {"figures": _rows(figures), "agreement": _rows(agreement), "footnotes": footnotes()}
    return {
        "md": to_markdown(pages),
        "csv": str(figures.to_csv(index=False, lineterminator="\n", float_format="%.6f")),
        "tex": to_latex(pages),
        "html": to_html(pages, "Ours and published"),
        "json": to_json(body),
    }


def write_reported(results: Path, records: Sequence[RunRecord]) -> list[Path]:
    """Write `reported.md`, `.csv`, `.tex`, `.html` and `.json`, each in one step.

    Raises:
        RecordError: no record is of a family that was published.
    """
    paths = []
    for ending, text in reported_texts(records).items():
        paths.append(results / f"reported.{ending}")
        write_text(paths[-1], text)
    return paths


def _rows(frame: pd.DataFrame) -> list[dict[str, object]]:
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]
