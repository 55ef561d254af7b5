"""What ships is what its cards say: hashes, sizes, one budget for all encoders or no encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from encoder_bench.base.hashing import hash_file
from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.mllm.loading import load_language_model
from zoo.architecture import OBJECTIVES
from zoo.language import held_out_pages, measure
from zoo.written_scenes import Layout, shipped_prompts
from zoo.zoo import bundled_folder

BUNDLED = bundled_folder("llm", "tiny-llama").parent.parent
FOLDERS = sorted(path.parent for path in BUNDLED.glob("*/*/model.safetensors"))


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return card


def test_something_ships() -> None:
    assert BUNDLED / "llm" / "tiny-llama" in FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_card_belongs_to_its_weights(folder: Path) -> None:
    card = card_of(folder)
    assert card["name"] == folder.name
    assert card["weights_sha256"] == hash_file(folder / "model.safetensors")
    assert card["loss_curve"][-1]["loss"] < card["loss_curve"][0]["loss"]


def test_all_together_are_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) < 25e6


def test_the_encoders_had_one_budget_and_one_pool() -> None:
    cards = [card_of(folder) for folder in FOLDERS if folder.parent.name == "encoders"]
    if not cards:
        pytest.skip("no encoder ships with this installation")
    assert {card["objective"] for card in cards} == set(OBJECTIVES)
    budgets = [{**card["budget"], "learning_rate": None} for card in cards]
    assert all(budget == budgets[0] for budget in budgets)
    assert len({json.dumps(card["data"]) for card in cards}) == 1
    assert all(card["data"]["suite_test_images_met_and_passed_over"] == 0 for card in cards)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_shipped_encoder_is_loaded_by_its_name(name: str) -> None:
    if not bundled_folder("encoders", f"tiny-{name}").is_dir():
        pytest.skip("no encoder ships with this installation")
    encoder = load_encoder(f"tiny-{name}")
    assert encoder.pretrained
    assert encoder.grid == (6, 6)


@pytest.mark.parametrize("layout", ["objects", "centres"])
def test_the_shipped_language_model_reads_unseen_pages(layout: Layout) -> None:
    language = load_language_model(LanguageModelSettings())
    assert language.pretrained
    accuracy = measure(language, held_out_pages(layout, shipped_prompts(), 24))
    # The likeliest answer alone is right for half of MCI and about a third of OC.
    assert accuracy["mci"] > 90
    assert accuracy["oc"] > 65
