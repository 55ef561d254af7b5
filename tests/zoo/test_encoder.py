"""Pretraining one encoder end to end: stop, resume, measure, ship, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from encoder_bench.base.hashing import hash_file
from encoder_bench.base.progress import QuietReporter
from zoo.architecture import CAPTION_TOKENS, build_encoder
from zoo.encoder import pretrain_encoder
from zoo.pool import ImagePool, caption_ids
from zoo.probe import measure, patch_tokens, prior
from zoo.schedule import Budget
from zoo.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(["dark", "bright", "a", "picture"])
BUDGET = Budget(steps=4, images_per_step=4)


def make_pool(count: int, seed: int) -> ImagePool:
    generator = torch.Generator().manual_seed(seed)
    bright = torch.rand(count, generator=generator) < 0.5
    base = torch.where(bright, 200, 40)[:, None, None, None]
    noise = torch.randint(0, 50, (count, 3, 72, 72), generator=generator)
    texts = ["a bright picture" if b else "a dark picture" for b in bright.tolist()]
    return ImagePool(
        images=(base + noise).to(torch.uint8),
        captions=tuple((caption_ids(TOKENIZER, text, length=CAPTION_TOKENS),) for text in texts),
        labels=torch.stack([bright, ~bright], dim=1).float(),
        classes={"kind": ("bright", "dark")},
        description={"kind": "test", "seed": seed},
    )


def run(name: str, tmp_path: Path, **options: Any) -> dict[str, Any]:
    return pretrain_encoder(
        name,  # type: ignore[arg-type]
        BUDGET,
        train_pool=make_pool(16, 0),
        probe_pool=make_pool(16, 1),
        test_pool=make_pool(16, 2),
        tokenizer=TOKENIZER,
        output=tmp_path / "out",
        work=tmp_path / "work",
        reporter=QuietReporter(),
        **options,
    )


def test_a_stopped_pretraining_ships_what_an_unstopped_one_does(tmp_path: Path) -> None:
    whole = run("dino", tmp_path / "whole")
    assert run("dino", tmp_path / "stopped", stop_after=2) == {}
    assert not (tmp_path / "stopped" / "out").exists()
    resumed = run("dino", tmp_path / "stopped")
    assert whole["weights_sha256"] == resumed["weights_sha256"]


@pytest.mark.parametrize(
    ("name", "model_class"),
    [
        ("deit", "ViTModel"),
        ("clip", "CLIPVisionModel"),
        ("siglip", "SiglipVisionModel"),
        ("mae", "ViTModel"),
        ("dinov2", "Dinov2Model"),
    ],
)
def test_what_ships_is_read_by_the_ordinary_loader(
    name: str, model_class: str, tmp_path: Path
) -> None:
    card = run(name, tmp_path)
    folder = tmp_path / "out"
    written = json.loads((folder / "card.json").read_text())
    assert card["class"] == written["class"] == model_class
    assert written["weights_sha256"] == hash_file(folder / "model.safetensors")
    assert written["budget"]["images_seen"] == 16
    assert len(written["loss_curve"]) >= 1
    options = {"add_pooling_layer": False} if model_class == "ViTModel" else {}
    model, report = getattr(transformers, model_class).from_pretrained(
        folder, output_loading_info=True, **options
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokens = patch_tokens(model.float().eval(), make_pool(3, 4).images)
    assert [tuple(block.shape) for block in tokens] == 6 * [(3, 36, 128)]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert list(processor.image_mean) == [0.5, 0.5, 0.5]


def test_the_probe_finds_what_tokens_say_and_nothing_in_noise() -> None:
    torch.manual_seed(0)
    model = build_encoder("dino").eval()
    known, asked = make_pool(256, 3), make_pool(40, 4)
    rows = measure(model, known, asked)
    assert [row["block"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["kind"] > 95 for row in rows)
    assert 30 < prior(asked)["kind"] < 70


def test_a_long_caption_is_cut_and_still_ends() -> None:
    ids = caption_ids(TOKENIZER, "a dark picture " * 30, length=CAPTION_TOKENS)
    assert len(ids) == CAPTION_TOKENS
    assert ids[-1] == TOKENIZER.eos_token_id
