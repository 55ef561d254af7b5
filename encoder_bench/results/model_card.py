"""The model card of an exported run: what it scored, how it was made, and the proof of training.

What belongs here: the card's text, in Markdown, from a record alone.
"""

from __future__ import annotations

import json

from encoder_bench.base.record import PartProof, RunRecord
from encoder_bench.results.formats.markdown import escape, to_markdown
from encoder_bench.results.table import table

_HEAD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [encoder-bench, llava]
---
"""


def model_card(record: RunRecord) -> str:
    """Return the card: row with its blind rows, encoder and LLM, recipe, data, proof, hardware."""
    encoder, language = record.encoder, record.language_model
    mode = "jointly tuned" if record.joint else "frozen"
    lines = [
        f"{_HEAD}# {escape(encoder.display_name)}, {mode}, under {escape(language.name)}",
        "",
        "Trained and scored by encoder-bench; load it with transformers'",
        "`LlavaForConditionalGeneration`.",
        "",
        "## Scores",
        to_markdown(table([record])).strip(),
        "",
        record_sheet(record),
    ]
    return "\n".join(lines)


def record_sheet(record: RunRecord) -> str:
    """Return what a record says beside its scores, in Markdown: parts, proof, recipe, hardware."""
    encoder, language = record.encoder, record.language_model
    lines = [
        "## Parts",
        f"- encoder: `{encoder.source}`, weights sha256 `{encoder.weights_sha256}`",
        f"- language model: `{language.name}`, weights sha256 `{language.weights_sha256}`",
        f"- visual tokens an image: {record.visual_tokens}",
        f"- seed: {record.seed}; run `{record.run_id}` of {record.created}",
        "",
        "## Proof of training",
        "| part | should train | trainable / all parameters | gradient norm, first, last | "
        "relative change | sha256 before | after |",
        "|---|---|---:|---|---:|---|---|",
        *(_part(name, proof) for name, proof in record.proof.parts.items()),
        "",
        f"Read back from disk, the model gave the same logits: {record.proof.reload_identical}.",
        "",
        "## Recipe",
        _block(record.adapter),
        "",
        "## Data",
        _block({"test": record.data, "training": record.training_data}),
        "",
        "## Hardware and versions",
        _block({"hardware": record.hardware, "versions": record.versions}),
        "",
        "Made with:",
        "",
        f"    {record.command}",
        "",
    ]
    return "\n".join(lines)


def _part(name: str, proof: PartProof) -> str:
    norms = ", ".join(
        "n/a" if norm is None else f"{norm:.3g}"
        for norm in (proof.first_gradient_norm, proof.last_gradient_norm)
    )
    cells = [
        name,
        "yes" if proof.should_train else "no",
        f"{proof.trainable_parameters:,} / {proof.parameters:,}",
        norms,
        f"{proof.relative_change:.3g}",
        f"`{proof.sha256_before[:12]}`",
        f"`{proof.sha256_after[:12]}`",
    ]
    return f"| {' | '.join(cells)} |"


def _block(content: object) -> str:
    return f"```json\n{json.dumps(content, indent=1, default=str)}\n```"
