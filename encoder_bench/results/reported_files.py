"""Ours beside the published figures, in every format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from encoder_bench.base.files import write_text
from encoder_bench.base.record import RunRecord
from encoder_bench.results.formats import html, latex, markdown
from encoder_bench.results.layout import Page
from encoder_bench.results.rank_agreement import rank_agreement
from encoder_bench.results.reported import compare_reported, footnotes
from encoder_bench.results.reported_page import lay_out_comparison


def comparison_texts(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return the comparison with the published figures as text, by format.

    CSV holds one row an encoder and column; JSON also the rank correlations and the footnotes.

    Raises:
        RecordError: no record is of a family that was published.
    """
    pages = lay_out_comparison(records)
    figures = compare_reported(records)
    body = {
        "figures": _rows(figures),
        "agreement": _rows(rank_agreement(figures)),
        "footnotes": footnotes(),
    }
    return {
        "md": "\n".join(markdown.render_page(page) for page in pages),
        "csv": str(figures.to_csv(index=False, lineterminator="\n", float_format="%.6f")),
        "tex": "\n".join(latex.render_page(page) for page in pages),
        "html": _html(pages),
        "json": json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }


def write_comparison(results: Path, records: Sequence[RunRecord]) -> list[Path]:
    """Write `reported.md`, `.csv`, `.tex`, `.html` and `.json`, each in one step.

    Raises:
        RecordError: no record is of a family that was published.
    """
    paths = []
    for ending, text in comparison_texts(records).items():
        paths.append(results / f"reported.{ending}")
        write_text(paths[-1], text)
    return paths


def _html(pages: Sequence[Page]) -> str:
    return html.whole_page("Ours and published", [html.render_page(page) for page in pages])


def _rows(frame: pd.DataFrame) -> list[dict[str, object]]:
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]
