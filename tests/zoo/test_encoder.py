"""Pretraining one encoder end to end: stop, resume, measure, ship, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from encoder_bench.base.hashing import hash_file
from encoder_bench.base.progress import QuietReporter
from encoder_bench.inspection.probe import linear_probe_scores
from zoo.architecture import CAPTION_TOKENS
from zoo.encoder import features, mean_average_precision, pretrain_encoder
from zoo.pool import ImagePool, caption_ids
from zoo.schedule import Budget
from zoo.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(["dark", "bright", "a", "picture"])
BUDGET = Budget(steps=4, images_per_step=4)


def make_pool(count: int, seed: int) -> ImagePool:
    generator = torch.Generator().manual_seed(seed)
    bright = torch.rand(count, generator=generator) < 0.5
    base = torch.where(bright, 200, 40)[:, None, None, None]
    noise = torch.randint(0, 50, (count, 3, 64, 64), generator=generator)
    texts = ["a bright picture" if b else "a dark picture" for b in bright.tolist()]
    return ImagePool(
        images=(base + noise).to(torch.uint8),
        captions=tuple((caption_ids(TOKENIZER, text, length=CAPTION_TOKENS),) for text in texts),
        labels=torch.stack([bright, ~bright], dim=1).float(),
        classes=("bright", "dark"),
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
        ("deit", "DeiTModel"),
        ("clip", "CLIPVisionModel"),
        ("siglip", "SiglipVisionModel"),
        ("mae", "ViTMAEModel"),
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
    model, report = getattr(transformers, model_class).from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    images = make_pool(3, 4).images
    assert features(name, model.float().eval(), images).shape == (3, 128)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert list(processor.image_mean) == [0.5, 0.5, 0.5]


def test_mae_features_see_every_patch_in_order(tmp_path: Path) -> None:
    run("mae", tmp_path)
    model = transformers.ViTMAEModel.from_pretrained(tmp_path / "out").float().eval()
    images = make_pool(2, 5).images
    assert torch.equal(features("mae", model, images), features("mae", model, images))
    assert model.config.mask_ratio == 0.75


def test_average_precision_by_hand() -> None:
    scores = np.asarray([[0.9, 0.1], [0.5, 0.2], [0.4, 0.3]])
    labels = np.asarray([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert mean_average_precision(scores, labels) == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_a_linear_probe_finds_a_linear_class() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator).numpy()
    labels = (x[:, :1] > 0).astype("float64")
    scores = linear_probe_scores(x[:100], labels[:100], x[100:])
    assert mean_average_precision(scores, labels[100:]) > 95


def test_a_long_caption_is_cut_and_still_ends() -> None:
    ids = caption_ids(TOKENIZER, "a dark picture " * 30, length=CAPTION_TOKENS)
    assert len(ids) == CAPTION_TOKENS
    assert ids[-1] == TOKENIZER.eos_token_id
