"""The catalogue as rows and cards, for people and for `--json`; imports no torch."""

import json
from dataclasses import asdict
from typing import Any

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.encoders.bundled import bundled_folder, has_bundled_weights
from encoder_bench.encoders.registry import encoder_names, find_spec
from encoder_bench.encoders.spec import EncoderSpec

_BYTES_PER_PARAMETER = 4


def encoder_rows(
    family: str | None = None,
    supervision: str | None = None,
    max_parameters: int | None = None,
    max_gflops: float | None = None,
) -> list[dict[str, Any]]:
    """Return one row per encoder, in catalogue order, of those that pass every filter given.

    An encoder whose size is not known before it is loaded passes no filter by size.

    Raises:
        UnknownNameError: no encoder has this family or supervision.
    """
    rows = [_row(find_spec(name)) for name in encoder_names()]
    for key, wanted in (("family", family), ("supervision", supervision)):
        known = {row[key] for row in rows}
        if wanted is not None and wanted not in known:
            raise UnknownNameError(key, wanted, sorted(known))
        rows = [row for row in rows if wanted in (None, row[key])]
    for key, limit in (("parameters", max_parameters), ("gflops", max_gflops)):
        if limit is not None:
            rows = [row for row in rows if row[key] is not None and row[key] <= limit]
    return rows


def encoder_card(name: str) -> dict[str, Any]:
    """Return everything that is known of one encoder without loading it.

    Raises:
        UnknownNameError: no such encoder.
    """
    spec = find_spec(name)
    card = asdict(spec) | {"sources": list(spec.sources), "revision": spec.revision or "unpinned"}
    if spec.source == "bundled" and not spec.random_weights:
        card |= _bundled_facts(spec)
    if spec.parameters is not None:
        card["weights_memory_bytes_float32"] = spec.parameters * _BYTES_PER_PARAMETER
    return card


def _bundled_facts(spec: EncoderSpec) -> dict[str, Any]:
    """Return what the shipped card says of a tiny encoder, or that its weights are random."""
    if not has_bundled_weights(spec.locator):
        return {"weights": "seeded random", "supervision": "none", "pretraining_data": "none",
                "pretraining_images": "none"}  # fmt: skip
    card = json.loads((bundled_folder(spec.locator) / "card.json").read_text())
    return {
        "weights": "shipped",
        "revision": f"sha256:{card['weights_sha256']}",
        "pretraining_images": f"{card['budget']['images_seen']} seen",
    }


def _row(spec: EncoderSpec) -> dict[str, Any]:
    facts = asdict(spec) | (_bundled_facts(spec) if spec.source == "bundled" else {})
    data, images = facts["pretraining_data"], facts["pretraining_images"]
    kept = ("name", "family", "supervision", "parameters", "gflops", "width", "resolution",
            "prefix_tokens", "licence")  # fmt: skip
    return {key: facts[key] for key in kept} | {
        "encoder": spec.display_name,
        "pretraining": "none: random weights" if data == "none" else f"{data} ({images})",
        "patch_tokens": spec.tokens,
        "sources": list(spec.sources),
        "revision": facts["revision"] or "unpinned",
    }
