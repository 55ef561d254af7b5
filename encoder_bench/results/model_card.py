"""The model card of an exported run: its scores, how it was made, the proof of training."""

from __future__ import annotations

from encoder_bench.base.record import RunRecord
from encoder_bench.results.formats import FORMATS, templates
from encoder_bench.results.table import build_tables


def model_card(record: RunRecord) -> str:
    """Return the card in Markdown: scores, encoder and LLM, recipe, data, proof, hardware."""
    scores = FORMATS["md"](build_tables([record])).strip()
    return templates().get_template("record.md.j2").render(record=record, scores=scores)


def record_sheet(record: RunRecord) -> str:
    """Return what a record holds beside its scores, in Markdown."""
    return templates().get_template("record.md.j2").render(record=record, scores="")
