"""Pools of scenes: labels by hand, streams that share nothing, no picture of the suite's tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from encoder_bench.base.progress import QuietReporter
from encoder_bench.data.scenes.graph import Scene, Thing
from zoo import scene_pool as module
from zoo.pool import ImagePool
from zoo.scene_pool import scene_classes, scene_pool
from zoo.tokenizer import build_tokenizer, words_of
from zoo.written_scenes import grammar_texts


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(words_of(grammar_texts()))


def draw(stream: str, tokenizer: Any) -> ImagePool:
    return scene_pool(stream, 12, tokenizer=tokenizer, reporter=QuietReporter())


def test_labels_by_hand() -> None:
    ring = Thing("ring", "red", "large", 20.0, 44.0, 8.0, 0.0)
    scene = Scene("plain", 0, (ring, Thing("ring", "blue", "small", 50.0, 10.0, 5.0, 0.0)))
    asked = scene_classes(scene)
    assert {name: {n for n, yes in group.items() if yes} for name, group in asked.items()} == {
        "kind": {"ring"},
        "count": {"2 or more ring"},
        "colour": {"red ring", "blue ring"},
        "position": {"ring left", "ring bottom", "ring right", "ring top"},
    }


def test_streams_share_no_picture_and_repeat_exactly(tokenizer: Any) -> None:
    train, again, held_out = (draw(s, tokenizer) for s in ("train", "train", "held-out"))
    assert torch.equal(train.images, again.images)
    assert train.captions == again.captions
    digests = [{bytes(i.numpy().tobytes()) for i in pool.images} for pool in (train, held_out)]
    assert not digests[0] & digests[1]
    assert train.images.shape == (12, 3, 72, 72)


def test_an_image_has_short_captions_and_listings_of_everything(tokenizer: Any) -> None:
    pool = draw("train", tokenizer)
    full_stop = tokenizer(" .", add_special_tokens=False)["input_ids"][-1]
    for sentences in pool.captions:
        listings = [ids for ids in sentences if full_stop in ids]
        assert len(sentences) == 8
        assert len(listings) == 3
        assert tokenizer.eos_token_id in listings[0]  # it was not cut


def test_a_picture_of_the_suite_is_passed_over(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = draw("train", tokenizer).images[0].permute(1, 2, 0).numpy().tobytes()
    shunned = frozenset({module.hashlib.sha256(first).hexdigest()})
    monkeypatch.setattr(module, "_suite_pictures", lambda _: shunned)
    pool = draw("train", tokenizer)
    assert pool.description["suite_test_images_met_and_passed_over"] == 1
    assert pool.images[0].permute(1, 2, 0).numpy().tobytes() != first


def test_a_batch_joins_each_image_with_one_of_its_own_captions(tokenizer: Any) -> None:
    pool = draw("train", tokenizer)
    batch = pool.batch(6, torch.Generator().manual_seed(0))
    for image, caption in zip(batch.images, batch.captions, strict=True):
        index = next(i for i in range(12) if torch.equal(pool.images[i].float() / 255.0, image))
        assert tuple(caption.tolist()) in pool.captions[index]
