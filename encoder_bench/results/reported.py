"""Published figures beside ours: differences, rank correlation, and what a reader must know.

What belongs here: the published table of Wang et al. 2023 (`results/reported/gvt_table1.csv`, a
copy of which is packaged) and its comparison with records. It was made with another language
model, other data and looser metrics than these, so agreement of ranks is the question, not of
numbers.

Reference: Wang et al. 2023, "What Makes for Good Visual Tokenizers for Large Language Models?",
arXiv 2305.12223, Table 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord
from encoder_bench.results.columns import (
    AVERAGE,
    ENCODER,
    HALF,
    KIND,
    RUNS,
    SETTING,
    half_width_column,
)
from encoder_bench.results.estimates import AVERAGED
from encoder_bench.results.grouping import group_records
from encoder_bench.results.table import table

_PUBLISHED = {
    "vqa_acc": "VQA Acc",
    "caption_cider": "CIDEr",
    "caption_spice": "SPICE",
    "oc_acc": "OC Acc",
    "mci_acc": "MCI Acc",
    "avg_as_printed": AVERAGE,
}
COLUMNS = tuple(_PUBLISHED.values())


def reported_path() -> Path:
    """Return the file of published figures: the packaged copy, else the checkout's.

    Raises:
        RecordError: neither is there.
    """
    packaged = Path(str(resources.files("encoder_bench"))) / "_reported" / "gvt_table1.csv"
    checkout = Path(__file__).resolve().parents[2] / "results" / "reported" / "gvt_table1.csv"
    for path in (packaged, checkout):
        if path.is_file():
            return path
    raise RecordError(f"{packaged}: the published figures are missing; reinstall encoder-bench")


def load_reported(path: Path | None = None) -> pd.DataFrame:
    """Return the published table: `Joint Tuning`, `Family`, `Supervision` and its score columns.

    Raises:
        RecordError: the file is missing or lacks a column; names it.
    """
    source = path or reported_path()
    try:
        frame = pd.read_csv(source)
    except (OSError, ValueError) as error:
        raise RecordError(f"{source}: not readable as CSV ({error})") from error
    lacking = {"joint_tuning", "encoder", "supervision", *_PUBLISHED} - set(frame.columns)
    if lacking:
        raise RecordError(f"{source}: column '{min(lacking)}' is missing")
    return frame.rename(
        columns={
            "joint_tuning": HALF,
            "encoder": "Family",
            "supervision": "Supervision",
            **_PUBLISHED,
        }
    )


def compare_reported(
    records: Iterable[RunRecord], reported: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return ours and the published figure, one row for each encoder of ours and column.

    Rows are matched on the encoder's family and the mode; encoders of families that were not
    published are left out.

    Returns:
        `Setting`, `Joint Tuning`, `Visual Encoder`, `Family`, `Column`, `Ours`, `±`, `Published`,
        `Difference` (ours less published); NaN where either is missing.
    """
    known = load_reported() if reported is None else reported
    published = {(bool(row[HALF]), str(row["Family"])): row for row in known.to_dict("records")}
    kept = tuple(records)
    families = _families(kept)
    frame = table(kept)
    rows: list[dict[str, Any]] = []
    for row in frame[frame[KIND] == "encoder"].to_dict("records"):
        family = families[str(row[RUNS]).split()[0]]
        figures = published.get((bool(row[HALF]), family))
        if figures is not None:
            shared = {name: row[name] for name in (SETTING, HALF, ENCODER)} | {"Family": family}
            rows.extend(shared | _figures(row, figures, column) for column in COLUMNS)
    names = [SETTING, HALF, ENCODER, "Family", "Column", "Ours", "±", "Published", "Difference"]
    return pd.DataFrame(rows, columns=names)


def _figures(row: dict[Any, Any], figures: dict[Any, Any], column: str) -> dict[str, Any]:
    return {
        "Column": column,
        "Ours": row[column],
        "±": row[half_width_column(column)],
        "Published": figures[column],
        "Difference": row[column] - figures[column],
    }


def _families(records: Sequence[RunRecord]) -> dict[str, str]:
    return {
        record.run_id: record.encoder.family.casefold()
        for group in group_records(records)
        for record in group.records
    }


def footnotes(reported: pd.DataFrame | None = None) -> list[str]:
    """Return what must be known of the published figures before ours are held against them."""
    known = load_reported() if reported is None else reported
    notes = [
        "Published figures: arXiv 2305.12223, Table 1; made with Vicuna-7B, other training data, "
        "and its own, looser scoring of VQA, OC and MCI. Compare ranks rather than numbers."
    ]
    means = known[list(AVERAGED)].mean(axis=1)
    for row, mean in zip(known.to_dict("records"), means, strict=True):
        if abs(mean - row[AVERAGE]) > 0.06:
            mode = "joint" if row[HALF] else "frozen"
            notes.append(
                f"Published Avg of {row['Family']}, {mode}, is printed as {row[AVERAGE]:.1f}; the "
                f"mean of its four figures is {mean:.3f}."
            )
    counts = known["OC Acc"] * 2
    if (counts == counts.round()).all():
        half = 196 * math.sqrt(0.25 / 200)
        notes.append(
            "Every published OC figure is a multiple of 0.5, which points to 200 questions: a 95% "
            f"half-width of up to {half:.1f} points."
        )
    notes.append(
        f"The published OC figures reach {known['OC Acc'].max():.1f}; always answering '1' scores "
        "54.3 on the question file first published."
    )
    return notes
