"""The named encoders, read from data files; importing this module imports no torch.

`fully.toml`, `weakly.toml` and `self.toml` hold what people say (names, sources, data, licence,
paper), `facts.json` what an architecture says of itself (written by `encoders/facts.py`), and
`configs.toml` the shapes of transformers repositories. A revision that has not been verified is
left open and shown as `unpinned`.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from encoder_bench.base.errors import WeightsError

Source = Literal["timm", "open_clip", "hf", "dir", "bundled", "combined"]
Supervision = Literal["fully", "weakly", "self", "mixed", "unknown", "none"]

_FOLDER = Path(__file__).parent
FACTS_FILE = _FOLDER / "facts.json"
_SUPERVISION: tuple[Supervision, ...] = ("fully", "weakly", "self")
_TINY_FAMILIES = ("deit", "clip", "siglip", "mae", "dino", "dinov2", "random")
_PER_ENCODER = ("data", "images", "licence", "paper", "patch", "resolution", "revision")


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """One encoder: its short name, which weights that is, and what is known of them.

    Attributes:
        name: the registered name, or the general form (`timm:NAME`) as the user gave it.
        display_name: for tables (`DINOv2 ViT-L/14`).
        source: which loader reads it.
        locator: Hub repository, timm name, `ARCH/PRETRAINED`, or folder.
        supervision: of the pretraining.
        pretraining_data: the data set's name; `unknown` where it is not stated.
        pretraining_images: how many, as the authors print it (`142M`).
        revision: Hub commit; None is shown as `unpinned`, and the run records what it got.
        parameters: of the vision tower without heads; None until it is loaded.
        width: D; None until it is loaded.
        depth: transformer blocks; None for hierarchical models.
        patch: pixels of the side that one token covers (the overall stride of hierarchical models).
        resolution: pixels of the side that the checkpoint's own preprocessing gives.
        tokens: N patch tokens at that resolution.
        prefix_tokens: class, distillation and register tokens that stand before the patch tokens
            and are left out.
        gflops: 1e9 floating-point operations per image, a multiply-add counted as two.
        paper: arXiv number.
        sources: every place that offers these weights, `timm:NAME` and so on, the first loaded by
            the plain name.
        architecture: arguments that override timm's own for the name, where a checkpoint that
            timm does not list differs (`num_heads`).
        preprocessing: likewise, overrides of timm's record (`mean`, `std`, `crop_pct`).
        random_weights: the architecture and preprocessing with the library's own initialisation.
    """

    name: str
    display_name: str
    family: str
    source: Source
    locator: str
    supervision: Supervision
    pretraining_data: str
    pretraining_images: str
    revision: str | None = None
    parameters: int | None = None
    width: int | None = None
    depth: int | None = None
    patch: int | None = None
    resolution: int | None = None
    tokens: int | None = None
    prefix_tokens: int | None = None
    gflops: float | None = None
    licence: str = "unknown"
    paper: str = "unknown"
    sources: tuple[str, ...] = ()
    architecture: Mapping[str, Any] = field(default_factory=dict, hash=False)
    preprocessing: Mapping[str, Any] = field(default_factory=dict, hash=False)
    random_weights: bool = False


def check_layer(name: str, layer: tuple[int, ...], blocks: int | None) -> None:
    """Check that an encoder of so many blocks, None for hierarchical ones, has such layers.

    Raises:
        WeightsError: no such block, or no plain stack of blocks.
    """
    if blocks is None and layer != (-1,):
        raise WeightsError(
            f"encoder {name}: it is hierarchical, without a plain stack of blocks of which layer "
            f"{', '.join(map(str, layer))} could be read; pass --layer -1, its last output"
        )
    known = blocks or 1
    if absent := [index for index in layer if not -known <= index < known]:
        raise WeightsError(
            f"encoder {name}: --layer {absent[0]} is none of its {known} blocks "
            f"(0 to {known - 1}, or -{known} to -1)"
        )


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


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def transformers_configs() -> dict[str, dict[str, Any]]:
    """Return repository -> {`config`, `resolution`} of `configs.toml`."""
    return _read("configs")


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


def _tiny(family: str, first: EncoderSpec | None, facts: dict[str, dict[str, Any]]) -> EncoderSpec:
    """Return a bundled encoder; without a released one of its family, the untrained control."""
    name = f"tiny-{family}"
    return EncoderSpec(
        name=name,
        display_name=f"tiny {first.display_name.split()[0] if first else family}",
        family=family,
        source="bundled",
        locator=name,
        supervision=first.supervision if first else "none",
        pretraining_data="scenes" if first else "none",
        pretraining_images="see card" if first else "none",
        licence="Apache-2.0",
        paper=first.paper if first else "unknown",
        sources=(f"bundled:{name}",),
        **facts.get(f"bundled:{name}", {}),
    )


def read_catalog() -> dict[str, EncoderSpec]:
    """Return every named encoder, the tiny ones first."""
    facts = json.loads(FACTS_FILE.read_text(encoding="utf-8")) if FACTS_FILE.is_file() else {}
    released = [
        _spec(family, entry, row, supervision, facts)
        for supervision in _SUPERVISION
        for family, entry in _read(supervision).items()
        for row in entry["encoders"]
    ]
    first = {spec.family: spec for spec in reversed(released)}
    tiny = [_tiny(family, first.get(family), facts) for family in _TINY_FAMILIES]
    return {spec.name: spec for spec in [*tiny, *released]}


CATALOG: dict[str, EncoderSpec] = read_catalog()
