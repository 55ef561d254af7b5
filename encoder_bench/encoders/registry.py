"""From a name to what is known of an encoder, and to the encoder; importing it imports no torch."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder_bench.base.errors import EncoderBenchError, UnknownNameError, WeightsError
from encoder_bench.base.paths import with_home
from encoder_bench.base.plugins import plugins
from encoder_bench.encoders.bundled import bundled_folder, has_bundled_weights
from encoder_bench.encoders.catalog import (
    CATALOG,
    EncoderSpec,
    Source,
    parse_source,
    transformers_configs,
)

if TYPE_CHECKING:
    from encoder_bench.encoders.encoder import Encoder, LoadOptions

ENTRY_POINTS = "encoder_bench.encoders"
RANDOM = "random:"
"""Before any name: its architecture and preprocessing with freshly initialised weights."""
_BYTES_PER_PARAMETER = 4
_FORMS: dict[str, Source] = {"timm": "timm", "open_clip": "open_clip", "hf": "hf", "dir": "dir"}
_HINT = (
    "Besides: timm:NAME, open_clip:ARCH/PRETRAINED, hf:REPO[@REV], dir:PATH, NAME@SOURCE for "
    "another library's copy of the same weights, A+B, or random:NAME for its random twin."
)


def encoder_names() -> list[str]:
    """Return every registered name, the catalogue's first and then plug-ins'."""
    return [*CATALOG, *sorted(plugin_specs())]


def plugin_specs() -> dict[str, EncoderSpec]:
    """Return encoders that other packages add through the `encoder_bench.encoders` entry point.

    Raises:
        EncoderBenchError: one is no `EncoderSpec`, takes a name that is taken, or has a name that
            reads as a general form.
    """
    found = plugins(ENTRY_POINTS, EncoderSpec, CATALOG)
    for name in found:
        if any(sign in name for sign in ":+@"):
            raise EncoderBenchError(
                f"entry point of {ENTRY_POINTS}: the name '{name}' has one of : + @, which stand "
                "for general forms; choose another"
            )
    return found


def find_spec(name: str) -> EncoderSpec:
    """Return the record of a name or of a general form.

    Raises:
        UnknownNameError: neither; the nearest names are suggested.
    """
    if name in CATALOG:
        return CATALOG[name]
    if name.startswith(RANDOM):
        return _random_twin(name, find_spec(name.removeprefix(RANDOM)))
    form, colon, locator = name.partition(":")
    whole_folder = form == "dir" and with_home(locator).is_dir()
    if colon and form in _FORMS and locator and (whole_folder or "+" not in name):
        return _general(name, _FORMS[form], locator)
    plugins = plugin_specs()
    if name in plugins:
        return plugins[name]
    if "+" in name:
        return _combined(name, [find_spec(part) for part in name.split("+")])
    if "@" in name:
        return _elsewhere(name)
    raise UnknownNameError("encoder", name, encoder_names(), _HINT)


def check_files(spec: EncoderSpec, weights: Path | None) -> None:
    """Check that the folder of `dir:PATH`, or what `--weights` names, is there and can be read.

    Raises:
        WeightsError: it is not, or `--weights` is given for encoders joined by +.
    """
    if spec.source == "combined":
        if weights is not None:
            raise WeightsError("--weights works on one encoder; name folders as dir:A+dir:B")
        for part in spec.locator.split("+"):
            check_files(find_spec(part), None)
    elif weights is not None:
        _check_readable(weights, f"--weights {weights}")
    elif spec.source == "dir":
        _check_readable(Path(spec.locator), f"encoder {spec.name}", folder=True)


def _check_readable(place: Path, what: str, *, folder: bool = False) -> None:
    try:
        with os.scandir(place) if folder or place.is_dir() else place.open("rb"):
            pass
    except OSError as error:
        raise WeightsError(f"{what}: {error.strerror}") from error


def _random_twin(name: str, spec: EncoderSpec) -> EncoderSpec:
    return replace(
        spec,
        name=name,
        display_name=f"{spec.display_name}, random weights",
        supervision="none",
        pretraining_data="none",
        pretraining_images="none",
        revision=None,
        random_weights=True,
    )


def _general(name: str, source: Source, locator: str) -> EncoderSpec:
    revision = None
    if source == "hf" and "@" in locator:
        locator, _, revision = locator.partition("@")
    return EncoderSpec(
        name=name,
        display_name=Path(locator).name if source == "dir" else locator,
        family="unknown",
        source=source,
        locator=str(with_home(locator).resolve()) if source == "dir" else locator,
        supervision="unknown",
        pretraining_data="unknown",
        pretraining_images="unknown",
        revision=revision,
        sources=(name,),
    )


def _elsewhere(name: str) -> EncoderSpec:
    """Return the record of `NAME@SOURCE`: the same weights as another library offers them."""
    base, _, wanted = name.rpartition("@")
    spec = find_spec(base)
    for source in spec.sources:
        form, locator = parse_source(source)
        if form == wanted:
            return replace(spec, name=name, source=form, locator=locator)
    raise UnknownNameError(
        f"source of {base}", wanted, [parse_source(source)[0] for source in spec.sources]
    )


def _combined(name: str, specs: list[EncoderSpec]) -> EncoderSpec:
    """Return what is known of several encoders at once; the first has the grid."""
    kinds = {spec.supervision for spec in specs}
    parameters = [spec.parameters for spec in specs]
    gflops = [spec.gflops for spec in specs]
    texts = ("display_name", "pretraining_data", "pretraining_images", "licence", "paper")
    joined: dict[str, Any] = {
        field: " + ".join(getattr(spec, field) for spec in specs) for field in texts
    }
    return EncoderSpec(
        name=name,
        family="+".join(spec.family for spec in specs),
        source="combined",
        locator=name,
        supervision=kinds.pop() if len(kinds) == 1 else "mixed",
        parameters=None if None in parameters else sum(p or 0 for p in parameters),
        patch=specs[0].patch,
        resolution=specs[0].resolution,
        tokens=specs[0].tokens,
        gflops=None if None in gflops else round(sum(g or 0.0 for g in gflops), 2),
        sources=tuple(source for spec in specs for source in spec.sources[:1]),
        **joined,
    )


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
    """Return all that is known of one encoder without loading it; raises as `find_spec`."""
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
    card = json.loads((bundled_folder(spec.locator) / "card.json").read_text(encoding="utf-8"))
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


def load_encoder(
    name: str,
    *,
    layer: tuple[int, ...] = (-1,),
    resolution: int | None = None,
    dtype: str = "float32",
    weights: Path | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> Encoder:
    """Load an encoder by name or general form, in eval mode, on the CPU; see `LoadOptions`.

    The dtype is float32, bfloat16 or float16; `weights` is the checkpoint on disk, a folder or a
    file, instead of the Hub's; the seed is that of the random weights of `random:NAME`.

    Raises:
        UnknownNameError: no such name.
        WeightsError: the weights are unreachable, damaged, or do not fit.
    """
    import torch

    from encoder_bench.encoders.encoder import LoadOptions

    spec = find_spec(name)
    check_files(spec, weights)
    options = LoadOptions(
        layer, resolution, getattr(torch, dtype), spec.random_weights, trust_remote_code
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _load(spec, weights, options)


_BEIT = {
    "beit-b": "beit_base_patch16_224",
    "beit-l": "beit_large_patch16_224",
    "data2vec-b": "beit_base_patch16_224",
    "data2vec-l": "beit_large_patch16_224",
}
"""Names whose authors' files are in BEiT's own code, which timm's class reads."""
_PRETRAINED_BEIT = {
    "use_shared_rel_pos_bias": True,
    "use_rel_pos_bias": False,
    "use_fc_norm": False,
}


_WEBSSL_PREPROCESSING = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}
"""Of the README of facebookresearch/webssl: the short side to 256, the middle 224 of it."""


def _webssl(spec: EncoderSpec) -> EncoderSpec:
    """Return the timm architecture that reads Web-SSL's own files: DINOv2's code, or timm's ViT.

    DINOv2's SwiGLU has two thirds of the width, rounded up to 8, twice in one matrix.
    """
    config = transformers_configs()[spec.locator]["config"]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    width, depth, heads, patch = (int(config[name]) for name in names)
    shape: dict[str, Any] = {
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "patch_size": patch,
    }
    locator = "vit_large_patch16_224.mae"
    if config["model_type"] == "dinov2":
        hidden = (int(width * config["mlp_ratio"] * 2 / 3) + 7) // 8 * 8
        locator, shape["mlp_ratio"] = "vit_giant_patch14_dinov2", (2 * hidden + 0.5) / width
    preprocessing = {**spec.preprocessing, **_WEBSSL_PREPROCESSING}
    return replace(
        spec, source="timm", locator=locator, architecture=shape, preprocessing=preprocessing
    )


def _by_file(spec: EncoderSpec, weights: Path | None) -> tuple[EncoderSpec, Path | None]:
    """Return the source that reads `--weights FILE`, an encoder's authors' own format."""
    if weights is None or weights.is_dir() or spec.source in ("timm", "open_clip"):
        return spec, weights
    if weights.name == "model.safetensors" and (weights.parent / "config.json").is_file():
        return spec, weights.parent
    for source in spec.sources:
        form, locator = parse_source(source)
        if form in ("timm", "open_clip"):
            tanh = form == "timm" and spec.family in ("siglip", "siglip2")
            architecture = {"act_layer": "gelu_tanh"} if tanh else {}
            return replace(spec, source=form, locator=locator, architecture=architecture), weights
    if spec.name in _BEIT:
        locator = _BEIT[spec.name]
        return replace(spec, source="timm", locator=locator, architecture=_PRETRAINED_BEIT), weights
    if spec.family == "webssl":
        return _webssl(spec), weights
    raise WeightsError(
        f"encoder {spec.name}: --weights {weights}: transformers reads a folder with config.json, "
        "preprocessor_config.json and model.safetensors, not one file; no other library offers "
        "this encoder"
    )


def _load(spec: EncoderSpec, weights: Path | None, options: LoadOptions) -> Encoder:
    if spec.source == "combined":
        from encoder_bench.encoders.encoder import CombinedEncoder

        parts = []
        for part in map(find_spec, spec.locator.split("+")):
            random = options.random_weights or part.random_weights
            parts.append(_load(part, None, replace(options, random_weights=random)))
        return CombinedEncoder(spec, parts)
    spec, weights = _by_file(spec, weights)
    if spec.sources and parse_source(spec.sources[0])[0] != spec.source:
        # Another library's record of these weights may state another size than the name.
        options = replace(options, resolution=options.resolution or spec.resolution)
    from PIL.Image import new as new_image

    from encoder_bench.encoders.loading import explained

    with explained(spec.name, str(weights or spec.locator)):
        encoder = _from_library(spec, weights, options)
        encoder.pixels([new_image("RGB", (8, 8))])  # settings that fit no image fail here
    if options.random_weights:
        encoder.pretrained, encoder.weights_revision = False, None
    return encoder


def _from_library(spec: EncoderSpec, weights: Path | None, options: LoadOptions) -> Encoder:
    if spec.source == "timm":
        from encoder_bench.encoders.timm import load_timm

        return load_timm(spec, weights, options)
    if spec.source == "open_clip":
        from encoder_bench.encoders.open_clip import load_open_clip

        return load_open_clip(spec, weights, options)
    if spec.source == "bundled" and weights is None:
        from encoder_bench.encoders.bundled import load_bundled

        return load_bundled(spec, options)
    from encoder_bench.encoders.hf import load_hf

    return load_hf(spec, str(weights or spec.locator), options)
