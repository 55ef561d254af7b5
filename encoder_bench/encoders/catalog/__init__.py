"""The named encoders: data files, one line an encoder, read into records.

`fully.toml`, `weakly.toml` and `self.toml` hold what people say (names, sources, data, licence,
paper), `facts.json` what an architecture says of itself (parameters, width, depth, tokens, FLOPs;
written by `python -m encoder_bench.encoders.catalog.write_facts`, and recomputed by a test), and
`configs.toml` the shapes of transformers repositories. A revision that has not been verified is
left open and shown as `unpinned`. Importing this module imports no torch.
"""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, get_args

from encoder_bench.encoders.spec import EncoderSpec, Source, Supervision

_FOLDER = Path(__file__).parent
FACTS_FILE = _FOLDER / "facts.json"
_SUPERVISION: dict[str, Supervision] = {"fully": "fully", "weakly": "weakly", "self": "self"}
TINY_FAMILIES = ("deit", "clip", "siglip", "mae", "dino", "dinov2")
_PER_ENCODER = ("data", "images", "licence", "paper", "patch", "resolution", "revision")


def parse_source(source: str) -> tuple[Source, str]:
    """Split `timm:NAME` into the loader and what it is given.

    Raises:
        ValueError: no such loader.
    """
    form, _, locator = source.partition(":")
    for known in get_args(Source):
        if known == form and locator:
            return known, locator
    raise ValueError(f"'{source}' names no source")


@cache
def transformers_configs() -> dict[str, dict[str, Any]]:
    """Return repository -> {`config`, `resolution`} of `configs.toml`."""
    return tomllib.loads((_FOLDER / "configs.toml").read_text())


def _facts() -> dict[str, dict[str, Any]]:
    return json.loads(FACTS_FILE.read_text()) if FACTS_FILE.is_file() else {}


def _released(facts: dict[str, dict[str, Any]]) -> list[EncoderSpec]:
    return [
        _spec(family, entry, row, supervision, facts)
        for stem, supervision in _SUPERVISION.items()
        for family, entry in tomllib.loads((_FOLDER / f"{stem}.toml").read_text()).items()
        for row in entry["encoders"]
    ]


def _spec(
    family: str,
    entry: dict[str, Any],
    row: dict[str, Any],
    supervision: Supervision,
    facts: dict[str, dict[str, Any]],
) -> EncoderSpec:
    stated: dict[str, Any] = {key: row.get(key, entry.get(key)) for key in _PER_ENCODER}
    source, locator = parse_source(row["sources"][0])
    known: dict[str, Any] = {"patch": stated["patch"], "resolution": stated["resolution"]}
    if stated["patch"] and stated["resolution"]:
        known["tokens"] = (stated["resolution"] // stated["patch"]) ** 2
    known |= facts.get(row["sources"][0], {})
    return EncoderSpec(
        name=row["name"],
        display_name=f"{entry['display']} {row['size']}",
        family=family,
        source=source,
        locator=locator,
        supervision=entry.get("supervision", supervision),
        pretraining_data=stated["data"],
        pretraining_images=stated["images"],
        revision=stated["revision"],
        licence=stated["licence"],
        paper=stated["paper"],
        sources=tuple(row["sources"]),
        architecture=row.get("architecture", {}),
        preprocessing=row.get("preprocessing", entry.get("preprocessing", {})),
        **known,
    )


def _tiny(released: list[EncoderSpec], facts: dict[str, dict[str, Any]]) -> list[EncoderSpec]:
    first = {spec.family: spec for spec in reversed(released)}
    return [
        EncoderSpec(
            name=f"tiny-{family}",
            display_name=f"tiny {first[family].display_name.split()[0]}",
            family=family,
            source="bundled",
            locator=f"tiny-{family}",
            supervision=first[family].supervision,
            pretraining_data="scenes",
            pretraining_images="see card",
            licence="Apache-2.0",
            paper=first[family].paper,
            sources=(f"bundled:tiny-{family}",),
            **facts.get(f"bundled:tiny-{family}", {}),
        )
        for family in TINY_FAMILIES
    ]


def _untrained(facts: dict[str, dict[str, Any]]) -> EncoderSpec:
    """Return the control that every comparison of the tiny encoders needs: nothing learned."""
    return EncoderSpec(
        name="tiny-random",
        display_name="tiny random",
        family="random",
        source="bundled",
        locator="tiny-random",
        supervision="none",
        pretraining_data="none",
        pretraining_images="none",
        licence="Apache-2.0",
        sources=("bundled:tiny-random",),
        **facts.get("bundled:tiny-random", {}),
    )


def read_catalog() -> dict[str, EncoderSpec]:
    """Return every named encoder, the tiny ones first."""
    facts = _facts()
    released = _released(facts)
    tiny = [*_tiny(released, facts), _untrained(facts)]
    return {spec.name: spec for spec in [*tiny, *released]}


CATALOG: dict[str, EncoderSpec] = read_catalog()
