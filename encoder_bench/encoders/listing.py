"""The catalogue as rows and cards, for people and for `--json`; imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from encoder_bench.encoders.bundled_weights import has_bundled_weights
from encoder_bench.encoders.registry import encoder_names, find_spec
from encoder_bench.encoders.spec import EncoderSpec

BYTES_PER_PARAMETER = 4


def encoder_rows(
    family: str | None = None, supervision: str | None = None, max_parameters: int | None = None
) -> list[dict[str, Any]]:
    """Return one row an encoder, in catalogue order, of those that pass every filter given."""
    specs = (find_spec(name) for name in encoder_names())
    return [
        _row(spec)
        for spec in specs
        if (family is None or spec.family == family)
        and (supervision is None or spec.supervision == supervision)
        and (max_parameters is None or (spec.parameters or 0) <= max_parameters)
    ]


def encoder_card(name: str) -> dict[str, Any]:
    """Return everything that is known of one encoder without loading it.

    Raises:
        UnknownNameError: no such encoder.
    """
    spec = find_spec(name)
    card = asdict(spec)
    card["revision"] = spec.revision or "unpinned"
    card["patch_tokens"] = _tokens(spec)
    if spec.source == "bundled":
        shipped = has_bundled_weights(spec.locator)
        card["weights"] = "shipped" if shipped else "seeded random"
        if not shipped:
            card["pretraining_data"] = card["pretraining_images"] = "none"
    if spec.parameters is not None:
        card["weights_memory_bytes_float32"] = spec.parameters * BYTES_PER_PARAMETER
    return card


def _row(spec: EncoderSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "encoder": spec.display_name,
        "supervision": spec.supervision,
        "pretraining": _pretraining(spec),
        "parameters": spec.parameters,
        "width": spec.width,
        "patch_tokens": _tokens(spec),
        "source": f"{spec.source}:{spec.locator}",
        "revision": spec.revision or "unpinned",
    }


def _pretraining(spec: EncoderSpec) -> str:
    if spec.source == "bundled":
        return "scenes" if has_bundled_weights(spec.locator) else "none: random weights"
    return f"{spec.pretraining_data} ({spec.pretraining_images})"


def _tokens(spec: EncoderSpec) -> int | None:
    if not spec.resolution or not spec.patch:
        return None
    return (spec.resolution // spec.patch) ** 2
