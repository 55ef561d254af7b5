"""The catalogue as rows and cards, for people and for `--json`; imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.encoders.bundled_weights import bundled_folder, has_bundled_weights
from encoder_bench.encoders.registry import encoder_names, find_spec
from encoder_bench.encoders.spec import EncoderSpec

BYTES_PER_PARAMETER = 4


def encoder_rows(
    family: str | None = None,
    supervision: str | None = None,
    max_parameters: int | None = None,
    max_gflops: float | None = None,
) -> list[dict[str, Any]]:
    """Return one row an encoder, in catalogue order, of those that pass every filter given.

    An encoder whose size is not known before it is loaded passes no filter by size.

    Raises:
        UnknownNameError: no encoder has this family or supervision.
    """
    rows = [_row(find_spec(name)) for name in encoder_names()]
    _check_filter("family", family, {row["family"] for row in rows})
    _check_filter("supervision", supervision, {row["supervision"] for row in rows})
    return [
        row
        for row in rows
        if family in (None, row["family"])
        and supervision in (None, row["supervision"])
        and _at_most(row["parameters"], max_parameters)
        and _at_most(row["gflops"], max_gflops)
    ]


def encoder_card(name: str) -> dict[str, Any]:
    """Return everything that is known of one encoder without loading it.

    Raises:
        UnknownNameError: no such encoder.
    """
    spec = find_spec(name)
    card = asdict(spec)
    card["sources"] = list(spec.sources)
    card["revision"] = spec.revision or "unpinned"
    if spec.source == "bundled":
        card |= _bundled_facts(spec)
    if spec.parameters is not None:
        card["weights_memory_bytes_float32"] = spec.parameters * BYTES_PER_PARAMETER
    return card


def _bundled_facts(spec: EncoderSpec) -> dict[str, Any]:
    """Return what the shipped card says of a tiny encoder, or that its weights are random."""
    if not has_bundled_weights(spec.locator):
        return {
            "weights": "seeded random",
            "supervision": "none",
            "pretraining_data": "none",
            "pretraining_images": "none",
        }
    card = json.loads((bundled_folder(spec.locator) / "card.json").read_text())
    return {
        "weights": "shipped",
        "revision": f"sha256:{card['weights_sha256']}",
        "pretraining_images": f"{card['budget']['images_seen']} seen",
    }


def _check_filter(kind: str, wanted: str | None, known: set[Any]) -> None:
    if wanted is not None and wanted not in known:
        raise UnknownNameError(kind, wanted, sorted(known))


def _at_most(value: float | None, most: float | None) -> bool:
    return most is None or (value is not None and value <= most)


def _row(spec: EncoderSpec) -> dict[str, Any]:
    bundled = _bundled_facts(spec) if spec.source == "bundled" else {}
    data = bundled.get("pretraining_data", spec.pretraining_data)
    images = bundled.get("pretraining_images", spec.pretraining_images)
    return {
        "name": spec.name,
        "encoder": spec.display_name,
        "family": spec.family,
        "supervision": bundled.get("supervision", spec.supervision),
        "pretraining": "none: random weights" if data == "none" else f"{data} ({images})",
        "parameters": spec.parameters,
        "gflops": spec.gflops,
        "width": spec.width,
        "resolution": spec.resolution,
        "patch_tokens": spec.tokens,
        "prefix_tokens": spec.prefix_tokens,
        "sources": list(spec.sources),
        "revision": bundled.get("revision", spec.revision or "unpinned"),
        "licence": spec.licence,
    }
