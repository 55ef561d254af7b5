"""The model card of an exported run: its scores, how it was made, the proof of training."""

from __future__ import annotations

import json

from encoder_bench.base.record import PartProof, RunRecord
from encoder_bench.results.formats import FORMATS, escape_markdown
from encoder_bench.results.table import build_tables

_CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [encoder-bench, llava]
---
# {encoder}, {mode}, under {language}

Trained and scored by encoder-bench; load it with transformers'
`LlavaForConditionalGeneration`.

## Scores
{scores}

{sheet}"""
_SHEET = """\
## Parts
- encoder: `{record.encoder.source}`, weights sha256 `{record.encoder.weights_sha256}`
- language model: `{model.name}`, weights sha256 `{model.weights_sha256}`
- visual tokens per image: {record.visual_tokens}
- seed: {record.seed}; run `{record.run_id}` of {record.created}

## Proof of training
| part | should train | trainable / all parameters | gradient norm, first, last | \
relative change | sha256 before | after |
|---|---|---:|---|---:|---|---|
{parts}

Read back from disk, the model gave the same logits: {record.proof.reload_identical}.

## Recipe
{recipe}

## Data
{data}

## Hardware and versions
{hardware}

Made with:

    {record.command}
"""


def model_card(record: RunRecord) -> str:
    """Return the card in Markdown: scores, encoder and LLM, recipe, data, proof, hardware."""
    return _CARD.format(
        encoder=escape_markdown(record.encoder.display_name),
        mode="jointly tuned" if record.joint else "frozen",
        language=escape_markdown(record.language_model.name),
        scores=FORMATS["md"](build_tables([record])).strip(),
        sheet=record_sheet(record),
    )


def record_sheet(record: RunRecord) -> str:
    """Return what a record holds beside its scores, in Markdown."""
    return _SHEET.format(
        record=record,
        model=record.language_model,
        parts="\n".join(_part(name, proof) for name, proof in record.proof.parts.items()),
        recipe=_block(record.adapter),
        data=_block({"test": record.data, "training": record.training_data}),
        hardware=_block({"hardware": record.hardware, "versions": record.versions}),
    )


def _part(name: str, proof: PartProof) -> str:
    norms = [
        "n/a" if norm is None else f"{norm:.3g}"
        for norm in (proof.first_gradient_norm, proof.last_gradient_norm)
    ]
    cells = [
        name,
        "yes" if proof.should_train else "no",
        f"{proof.trainable_parameters:,} / {proof.parameters:,}",
        ", ".join(norms),
        f"{proof.relative_change:.3g}",
        f"`{proof.sha256_before[:12]}`",
        f"`{proof.sha256_after[:12]}`",
    ]
    return f"| {' | '.join(cells)} |"


def _block(content: object) -> str:
    return f"```json\n{json.dumps(content, indent=1, default=str)}\n```"
