"""The zoo by name, on a few scenes: all that ships is there and is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.mllm.loading import load_language_model
from zoo.architecture import OBJECTIVES
from zoo.schedule import Budget
from zoo.zoo import pretrain, zoo


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("bundled")
    cards = zoo(
        budget=Budget(steps=2, images_per_step=4),
        language_budget=Budget(steps=2, images_per_step=2),
        output=root,
        reporter=QuietReporter(),
        images={"train": 12, "probe": 12, "held-out": 12},
        held_out_pages=2,
    )
    return root, cards


def test_the_zoo_ships_six_encoders_on_one_budget(
    made: tuple[Path, list[dict[str, Any]]],
) -> None:
    root, cards = made
    assert [card["objective"] for card in cards] == list(OBJECTIVES)
    assert len({card["budget"]["images_seen"] for card in cards}) == 1
    assert len({json.dumps(card["data"]) for card in cards}) == 1
    for name in OBJECTIVES:
        assert (root / "encoders" / f"tiny-{name}" / "model.safetensors").is_file()


def test_the_language_model_is_read_by_the_ordinary_loader(
    made: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder = made[0] / "llm" / "tiny-llama"
    language = load_language_model(LanguageModelSettings(name=str(folder)))
    card = json.loads((folder / "card.json").read_text())
    assert card["steps_done"] == 2
    assert set(card["held_out_exact_answers_percent"]) == {
        "sentence",
        "objects",
        "centres",
        "cover",
    }
    question, answer = language.turn_ids("Does star exist in the image?", "Yes.", image=True)
    assert language.decode(answer) == "Yes."
    assert language.decode(question) == "Does star exist in the image?"


def test_unknown_names_are_errors() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'dino"):
        pretrain("dinov3", reporter=QuietReporter())
