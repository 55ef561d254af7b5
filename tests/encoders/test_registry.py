"""Names, general forms, and the facts of the catalogue."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import metadata
from typing import Any

import pytest
import torch

from encoder_bench.encoders import registry
from encoder_bench.encoders.catalog import CATALOG
from encoder_bench.encoders.listing import encoder_card, encoder_rows
from encoder_bench.encoders.spec import EncoderSpec
from encoder_bench.errors import EncoderBenchError, UnknownNameError, WeightsError

SHORT_NAMES = ("dinov2-l", "clip-l", "siglip-so400m", "mae-l", "dino-b", "deit-b")


def test_the_short_names_that_people_use_are_there() -> None:
    assert set(SHORT_NAMES) <= set(CATALOG)
    assert {spec.family for spec in CATALOG.values()} == {
        "deit", "clip", "siglip", "mae", "dino", "dinov2",
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


ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "deit": ("ViTModel", "ViTConfig", {"add_pooling_layer": False}),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", {}),
    "mae": ("ViTMAEModel", "ViTMAEConfig", {}),
    "dino": ("ViTModel", "ViTConfig", {"add_pooling_layer": False}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {}),
}
MLP = {1152: 4304}
HEAD_WIDTH = {1152: 72, 1280: 80}


@pytest.mark.parametrize("name", [n for n in CATALOG if not n.startswith("tiny-")])
def test_parameters_are_those_of_the_architecture(name: str) -> None:
    import transformers

    spec = CATALOG[name]
    assert spec.width is not None
    model_class, config_class, options = ARCHITECTURES[spec.family]
    shape: dict[str, Any] = {
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.width // HEAD_WIDTH.get(spec.width, 64),
        "patch_size": spec.patch,
        "image_size": 518 if spec.family == "dinov2" else spec.resolution,
    }
    if spec.family == "dinov2":
        shape |= {"mlp_ratio": 4, "use_swiglu_ffn": name == "dinov2-g"}
    else:
        shape |= {"intermediate_size": MLP.get(spec.width, 4 * spec.width)}
    with torch.device("meta"):
        config = getattr(transformers, config_class)(**shape)
        model = getattr(transformers, model_class)(config, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters


@pytest.mark.parametrize("name", [n for n in CATALOG if n.startswith("tiny-")])
def test_tiny_facts_are_those_of_the_loaded_encoder(name: str) -> None:
    encoder, spec = registry.load_encoder(name), CATALOG[name]
    assert sum(p.numel() for p in encoder.backbone.parameters()) == spec.parameters
    assert encoder.num_tokens == 64
    assert (encoder.width, encoder.spec.depth) == (spec.width, spec.depth)


def test_rows_and_cards_say_what_is_open() -> None:
    rows = encoder_rows()
    assert len(rows) == len(registry.encoder_names())
    assert all(row["revision"] == "unpinned" for row in rows if row["name"] in SHORT_NAMES)
    assert {row["supervision"] for row in encoder_rows(supervision="weakly")} == {"weakly"}
    assert all((row["parameters"] or 0) <= 30e6 for row in encoder_rows(max_parameters=30_000_000))
    card = encoder_card("clip-l")
    assert (card["patch_tokens"], card["paper"]) == (256, "2103.00020")
    assert encoder_card("tiny-mae")["weights"] in ("seeded random", "shipped")


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from encoder_bench.encoders.listing import encoder_card, encoder_rows\n"
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
    monkeypatch.setattr(metadata, "entry_points", lambda group: [EntryPoint("text")])
    with pytest.raises(EncoderBenchError, match="not an EncoderSpec"):
        registry.encoder_names()
