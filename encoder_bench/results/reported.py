"""Published figures beside ours: differences, rank correlations, and what a reader must know.

They were made with another language model, other data and looser metrics than ours, so agreement
of ranks is the question, not of numbers.

Reference: Wang et al. 2023, "What Makes for Good Visual Tokenizers for Large Language Models?",
arXiv 2305.12223, Table 1 (`results/reported/gvt_table1.csv`, of which a copy is packaged).
"""

import json
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord
from encoder_bench.data.folder import is_scenes
from encoder_bench.metrics.statistics import kendall_interval, spearman_interval
from encoder_bench.results.formats import to_html, to_json, to_latex, to_markdown
from encoder_bench.results.page import MODE, MODES, NOT_AVAILABLE, Page, text_page
from encoder_bench.results.score import AVERAGE, AVERAGED, ENCODER, JOINT, SETTING, missing
from encoder_bench.results.table import build_tables

_PUBLISHED = {
    "vqa_acc": "VQA Acc",
    "caption_cider": "CIDEr",
    "caption_spice": "SPICE",
    "oc_acc": "OC Acc",
    "mci_acc": "MCI Acc",
    "avg_as_printed": AVERAGE,
}
COLUMNS = tuple(_PUBLISHED.values())
_FIGURES = (SETTING, JOINT, ENCODER, "Family", "Column", "Ours", "±", "Published", "Difference")


def load_reported() -> pd.DataFrame:
    """Return the published table: `Joint Tuning`, `Family`, `Supervision` and its score columns.

    It is the packaged copy, else the checkout's.

    Raises:
        RecordError: the file is missing or damaged; names it.
    """
    name = "gvt_table1.csv"
    packaged = Path(str(resources.files("encoder_bench"))) / "_reported" / name
    checkout = Path(__file__).resolve().parents[2] / "results" / "reported" / name
    source = packaged if packaged.is_file() else checkout
    try:
        frame = pd.read_csv(source)
    except (OSError, ValueError) as error:
        raise RecordError(f"{source}: not readable as CSV ({error})") from error
    names = {"joint_tuning": JOINT, "encoder": "Family", "supervision": "Supervision"}
    return frame.rename(columns=names | _PUBLISHED)


def compare_reported(records: Iterable[RunRecord]) -> pd.DataFrame:
    """Return ours and the published figure, one row for each encoder of ours and column.

    Rows are matched on the encoder's family and the mode; encoders of families that were not
    published are left out, and runs tested on drawn scenes, which say nothing of photos. The
    difference is ours − published; NaN where either is missing.
    """
    known = load_reported().to_dict("records")
    published = {(bool(row[JOINT]), str(row["Family"])): row for row in known}
    records = [record for record in records if not _drawn(record)]
    figures = []
    for table in build_tables(records):
        for row in table.rows:
            # a random twin is of its encoder's family, and was not published
            own = row.runs if row.kind == "encoder" else None
            family = own.records[0].encoder.family.casefold() if own else ""
            theirs = published.get((bool(row.joint), family), {})
            for column in COLUMNS if theirs else ():
                cell, figure = row.cells.get(column, missing("")), theirs[column]
                ours = math.nan if cell.value is None else cell.value
                place = (table.heading, row.joint, row.label, family, column)
                figures.append((*place, ours, cell.half_width, figure, ours - figure))
    return pd.DataFrame(figures, columns=list(_FIGURES)).astype({"±": "float64"})


def _drawn(record: RunRecord) -> bool:
    return is_scenes(str(record.data.get("name")))


def rank_agreement(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's rho and Kendall's tau-b of ours and published, by mode and column.

    Intervals (`Spearman low`, `Spearman high`...) are 95%. With few encoders they are wide, and
    below five there is none (`Reason` says so).
    """
    keys = [SETTING, JOINT, "Column"]
    rows = []
    for place, part in comparison.groupby(keys, sort=False):
        both = part.dropna(subset=["Ours", "Published"])
        row = dict(zip(keys, place, strict=True)) | {"Encoders": len(both)}
        rows.append(row | _correlations(both["Ours"].tolist(), both["Published"].tolist()))
    return pd.DataFrame(rows)


def _correlations(ours: Sequence[float], published: Sequence[float]) -> dict[str, Any]:
    from scipy.stats import kendalltau, spearmanr

    names = ("Spearman", "Spearman low", "Spearman high", "Kendall", "Kendall low", "Kendall high")
    found: dict[str, Any] = dict.fromkeys(names, math.nan)
    count = len(ours)
    if count < 3:
        return found | {"Reason": f"{count} encoders are in both tables; ranks need 3"}
    if len(set(ours)) == 1 or len(set(published)) == 1:
        return found | {"Reason": "all figures are equal; there are no ranks"}
    rho = float(spearmanr(ours, published).statistic)
    tau = float(kendalltau(ours, published).statistic)
    found |= {"Spearman": rho, "Kendall": tau, "Reason": ""}
    if count < 5:
        return found | {"Reason": f"{count} encoders are too few for an interval"}
    values = (rho, *spearman_interval(rho, count), tau, *kendall_interval(tau, count))
    return found | dict(zip(names, values, strict=True))


def footnotes() -> list[str]:
    """Return what must be known of the published figures before ours are compared with them."""
    known = load_reported()
    notes = [
        "Published figures: arXiv 2305.12223, Table 1; made with Vicuna-7B, other training data, "
        "and its own, looser scoring of VQA, OC and MCI. Compare ranks rather than numbers."
    ]
    means = known[list(AVERAGED)].mean(axis=1)
    for row, mean in zip(known.to_dict("records"), means, strict=True):
        if abs(mean - row[AVERAGE]) > 0.06:
            notes.append(
                f"Published Avg of {row['Family']}, {MODES[row[JOINT]]}, is printed as "
                f"{row[AVERAGE]:.1f}; the mean of its four figures is {mean:.3f}."
            )
    half = 196 * math.sqrt(0.25 / 200)
    return [
        *notes,
        "Every published OC figure is a multiple of 0.5, which points to 200 questions: a 95% "
        f"half-width of up to {half:.1f} points.",
        f"The published OC figures reach {known['OC Acc'].max():.1f}; always answering '1' scores "
        "54.3 on the question file first published.",
    ]


def reported_pages(records: Sequence[RunRecord]) -> list[Page]:
    """Return printable tables of ours against published: figures, then agreement of ranks.

    Raises:
        RecordError: no record is of a family that was published, or all were tested on drawings.
    """
    if records and all(map(_drawn, records)):
        raise RecordError(
            "the published figures are of photos, and all runs here were tested on drawn scenes, "
            "which are not to be set beside them; run with --data coco or a data folder"
        )
    comparison = compare_reported(records)
    if comparison.empty:
        families = ", ".join(sorted(set(load_reported()["Family"])))
        raise RecordError(f"no record is of a published encoder's family ({families})")
    pages = []
    for setting, part in comparison.groupby(SETTING, sort=False):
        pages += [_figures_page(str(setting), part), _agreement_page(str(setting), part)]
    return pages


def _figures_page(setting: str, part: pd.DataFrame) -> Page:
    rows = [
        [MODES[bool(joint)], str(encoder), *map(_figure, cells.to_dict("records"))]
        for (joint, encoder), cells in part.groupby([JOINT, ENCODER], sort=False)
    ]
    general = "Each cell: ours ± half of its 95% interval / published (difference)."
    header = (MODE, ENCODER, *COLUMNS)
    return text_page(f"Ours and published · {setting}", header, rows, [general, *footnotes()])


def _figure(row: dict[Any, Any]) -> str:
    if pd.isna(row["Ours"]):
        return f"{NOT_AVAILABLE} / {row['Published']:.1f}"
    width = "" if pd.isna(row["±"]) else f" ±{row['±']:.1f}"
    return f"{row['Ours']:.1f}{width} / {row['Published']:.1f} ({row['Difference']:+.1f})"


def _agreement_page(setting: str, part: pd.DataFrame) -> Page:
    rows, notes = [], ["95% intervals in brackets, through Fisher's z."]
    for row in rank_agreement(part).to_dict("records"):
        texts = [_interval(row, name) for name in ("Spearman", "Kendall")]
        rows.append([MODES[row[JOINT]], row["Column"], str(row["Encoders"]), *texts])
        if row["Reason"]:
            notes.append(f"{row['Column']}, {MODES[row[JOINT]]}: {row['Reason']}.")
    header = (MODE, "Column", "Encoders", "Spearman", "Kendall")
    return text_page(f"Agreement of ranks · {setting}", header, rows, notes)


def _interval(row: dict[Any, Any], name: str) -> str:
    if pd.isna(row[name]):
        return NOT_AVAILABLE
    ends = "" if pd.isna(row[f"{name} low"]) else " [{:.2f}, {:.2f}]"
    return f"{row[name]:.2f}" + ends.format(row[f"{name} low"], row[f"{name} high"])


def reported_texts(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return the comparison with the published figures as text, by format.

    CSV holds one row per encoder and column; JSON also the rank correlations and the footnotes.

    Raises:
        RecordError: no record is of a family that was published.
    """
    pages = reported_pages(records)
    figures = compare_reported(records)
    rows = {
        name: json.loads(frame.to_json(orient="records", double_precision=15))
        for name, frame in (("figures", figures), ("agreement", rank_agreement(figures)))
    }
    return {
        "md": to_markdown(pages),
        "csv": str(figures.to_csv(index=False, lineterminator="\n", float_format="%.6f")),
        "tex": to_latex(pages),
        "html": to_html(pages, "Ours and published"),
        "json": to_json(rows | {"footnotes": footnotes()}),
    }
