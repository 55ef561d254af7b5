"""Names, general forms, and the facts of the catalogue."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from torchvision.transforms import CenterCrop, Compose

from encoder_bench.base.errors import EncoderBenchError, UnknownNameError, WeightsError
from encoder_bench.encoders import registry
from encoder_bench.encoders.catalog import (
    CATALOG,
    FACTS_FILE,
    EncoderSpec,
    parse_source,
    transformers_configs,
)
from encoder_bench.encoders.encoder import flat_map
from encoder_bench.encoders.facts import (
    architecture_facts,
    build_without_weights,
    can_be_computed,
)
from encoder_bench.encoders.open_clip import OpenClipEncoder
from encoder_bench.encoders.registry import encoder_card, encoder_rows

SHORT_NAMES = ("dinov2-l", "clip-l", "siglip-so400m", "mae-l", "dino-b", "deit-b")


def test_the_short_names_that_people_use_are_there() -> None:
    assert set(SHORT_NAMES) <= set(CATALOG)
    assert {spec.family for spec in CATALOG.values()} == {
        "deit", "deit3", "vit", "swin", "swinv2", "convnext",
        "clip", "openclip", "evaclip", "clipa", "metaclip", "metaclip2", "dfn", "siglip",
        "siglip2", "mobileclip", "mobileclip2", "aimv2", "pe",
        "mae", "dino", "dinov2", "dinov3", "ibot", "beit", "beitv2", "mocov3", "data2vec",
        "ijepa", "webssl", "random",
    }  # fmt: skip


def test_a_name_is_exact_or_an_error_with_suggestions() -> None:
    for wrong in ("dinov2", "DINOv2-L", "dinov2-l ", "facebook/dinov2-large", "nope:x", ""):
        with pytest.raises(UnknownNameError):
            registry.find_spec(wrong)
    with pytest.raises(UnknownNameError, match="did you mean 'dinov2-l'"):
        registry.find_spec("dinov2-L")


def test_general_forms() -> None:
    assert registry.find_spec("timm:vit_base_patch16_224.mae").source == "timm"
    assert registry.find_spec("open_clip:ViT-B-32/openai").locator == "ViT-B-32/openai"
    pinned = registry.find_spec("hf:facebook/dinov2-base@abc123")
    assert (pinned.locator, pinned.revision) == ("facebook/dinov2-base", "abc123")
    both = registry.find_spec("clip-l+dinov2-l")
    assert both.supervision == "mixed"
    assert both.parameters == CATALOG["clip-l"].parameters + CATALOG["dinov2-l"].parameters  # type: ignore[operator]
    with pytest.raises(UnknownNameError, match="unknown encoder 'dinov2-x'; did you mean"):
        registry.find_spec("clip-l+dinov2-x")


def test_every_fact_of_every_encoder_is_known() -> None:
    for spec in CATALOG.values():
        known = (spec.parameters, spec.width, spec.resolution, spec.tokens, spec.gflops)
        assert None not in known, spec.name
        assert spec.prefix_tokens is not None


def test_a_transform_is_described_alike_in_every_process() -> None:
    # open_clip before 3.3 has a plain function among its steps, and repr shows where it lies
    steps = Compose([CenterCrop(8), flat_map])
    towers = SimpleNamespace(to_pixels=steps)
    described = OpenClipEncoder.transform_description.fget(towers)  # type: ignore[attr-defined]
    assert described == "Compose( CenterCrop(size=(8, 8)) flat_map() )"


def test_weights_that_timm_does_not_list_say_how_they_differ_from_its_record() -> None:
    small = build_without_weights(CATALOG["mocov3-s"])
    assert small.backbone.blocks[0].attn.num_heads == 12
    assert "mean=(0.485, 0.456, 0.406)" in small.transform_description
    for spec in CATALOG.values():
        unlisted = spec.source == "timm" and "@" in spec.locator
        assert unlisted == bool(spec.preprocessing), spec.name


COMPUTED = [name for name, spec in CATALOG.items() if can_be_computed(spec)]
SMALLEST = [  # one of each family: the one with the fewest operations
    min(
        (s for s in CATALOG.values() if s.family == family and s.gflops), key=lambda s: s.gflops
    ).name
    for family in sorted({s.family for s in CATALOG.values() if s.gflops})
]


@pytest.mark.parametrize("name", COMPUTED)
def test_facts_are_those_of_the_architecture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # On the meta device there is nothing to initialise, and timm spends half its time on it.
    monkeypatch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *_: tensor)
    spec = CATALOG[name]
    facts = architecture_facts(spec, gflops=name in SMALLEST)
    assert facts == {key: getattr(spec, key) for key in facts}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPUTED)
def test_operations_are_those_of_the_architecture(name: str) -> None:
    assert architecture_facts(CATALOG[name])["gflops"] == CATALOG[name].gflops


def test_counts_are_those_that_papers_print() -> None:
    # Multiply-adds: DeiT table 5 (Ti 1.3, S 4.6, B 17.6 "FLOPs"), Swin table 1 (B 15.4),
    # ConvNeXt table 1 (B 15.4), at 224 px; ours count a multiply-add as two. Parameters in
    # millions from the same tables and CLIP's ViT-L/14 (304M, Prismatic's and OpenCLIP's tables).
    for name, printed in {
        "deit-ti": 1.3,
        "deit-s": 4.6,
        "deit-b": 17.6,
        "convnext-b": 15.4,
    }.items():
        assert CATALOG[name].gflops == pytest.approx(2 * printed, rel=0.04)
    assert CATALOG["swin-b"].gflops == pytest.approx(2 * 15.4, rel=0.02)
    assert CATALOG["clip-l"].parameters == pytest.approx(304e6, rel=0.005)
    assert CATALOG["dinov2-g"].parameters == pytest.approx(1.1e9, rel=0.04)


def test_every_source_is_a_name_that_its_library_lists() -> None:
    import open_clip
    import timm

    tagged, bare, pairs = timm.list_pretrained(), timm.list_models(), open_clip.list_pretrained()
    for spec in CATALOG.values():
        for source in spec.sources:
            form, locator = parse_source(source)
            if form == "timm" and "@" in locator:
                assert locator.partition("@")[0] in bare, source
            elif form == "timm":
                assert locator in tagged, source
            elif form == "open_clip":
                assert tuple(locator.split("/")) in pairs, source
            elif form == "hf":
                assert locator.count("/") == 1, source


def test_names_and_sources_are_unique_and_every_fact_has_an_encoder() -> None:
    rows = [s for s in CATALOG.values() if s.source != "bundled"]
    sources = [source for spec in rows for source in spec.sources]
    assert len(sources) == len(set(sources))
    assert set(json.loads(FACTS_FILE.read_text())) == {CATALOG[n].sources[0] for n in COMPUTED}
    assert all(spec.licence != "unknown" and spec.paper != "unknown" for spec in rows)
    assert all(re.fullmatch(r"\d{4}\.\d{5}", spec.paper) for spec in rows)
    named = set(transformers_configs())
    assert named <= {spec.locator for spec in rows if spec.source == "hf"}


def test_the_docs_say_of_every_family_what_was_loaded() -> None:
    text = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
    first_cells = " ".join(re.findall(r"^\| (`[^|]*`) \|", text, flags=re.MULTILINE))
    families = {s.family for s in CATALOG.values() if s.source != "bundled"}
    assert families <= set(re.findall(r"`([^`]+)`", first_cells))


@pytest.mark.parametrize("name", [n for n in CATALOG if n.startswith("tiny-")])
def test_tiny_facts_are_those_of_the_loaded_encoder(name: str) -> None:
    encoder, spec = registry.load_encoder(name), CATALOG[name]
    assert sum(p.numel() for p in encoder.backbone.parameters()) == spec.parameters
    assert encoder.num_tokens == spec.tokens == 36
    assert (encoder.width, encoder.spec.depth) == (spec.width, spec.depth)


def test_rows_and_cards_say_what_is_open() -> None:
    rows = encoder_rows()
    assert len(rows) == len(registry.encoder_names())
    assert all(row["revision"] == "unpinned" for row in rows if row["name"] in SHORT_NAMES)
    assert {row["supervision"] for row in encoder_rows(supervision="weakly")} == {"weakly"}
    assert all(row["parameters"] <= 30e6 for row in encoder_rows(max_parameters=30_000_000))
    assert all(row["gflops"] <= 10 for row in encoder_rows(max_gflops=10))
    with pytest.raises(UnknownNameError, match="unknown family 'dinov'"):
        encoder_rows(family="dinov")
    card = encoder_card("clip-l")
    assert (card["tokens"], card["prefix_tokens"], card["paper"]) == (256, 1, "2103.00020")
    assert card["sources"][0] == "hf:openai/clip-vit-large-patch14"
    assert encoder_card("tiny-mae")["weights"] in ("seeded random", "shipped")


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from encoder_bench.encoders.registry import encoder_card, encoder_rows\n"
        "encoder_rows(); encoder_card('tiny-mae'); print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_an_unreachable_hub_is_one_line_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"cannot be reached.*--weights PATH") as error:
        registry.load_encoder("dinov2-l")
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 30


class EntryPoint:
    def __init__(self, value: object) -> None:
        self.name, self.value, self._loaded = "extra", "package:THING", value

    def load(self) -> object:
        return self._loaded


def test_plug_ins_add_names_and_cannot_take_one(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = EncoderSpec("mine", "Mine", "mine", "hf", "me/mine", "self", "photos", "3M")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [EntryPoint(mine)])
    assert registry.find_spec("mine") is mine
    assert "mine" in registry.encoder_names()
    monkeypatch.setattr(metadata, "entry_points", lambda group: [EntryPoint(CATALOG["clip-l"])])
    with pytest.raises(EncoderBenchError, match="taken"):
        registry.encoder_names()
    form = replace(mine, name="timm:mine")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [EntryPoint(form)])
    with pytest.raises(EncoderBenchError, match="general forms"):
        registry.encoder_names()
    monkeypatch.setattr(metadata, "entry_points", lambda group: [EntryPoint("text")])
    with pytest.raises(EncoderBenchError, match=r"not of type .*EncoderSpec"):
        registry.encoder_names()
