"""The feature cache: exact, shared, and harmless where disks and files are not."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch

from encoder_bench.base.errors import DataError, TrainingError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.data.images import load_image
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.training import feature_cache
from encoder_bench.training.feature_cache import (
    FeatureStore,
    list_features,
    open_features,
    prune_features,
)
from tests.training.world import CPU, draw


class Listener(QuietReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def encoder() -> Encoder:
    return load_encoder("tiny-clip").requires_grad_(False)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path / "cache"))
    return draw(tmp_path / "images")


def opened(
    encoder: Encoder, images: list[Path], reporter: QuietReporter | None = None, **options: object
) -> FeatureStore:
    store = open_features(
        encoder,
        images,
        device=CPU,
        reporter=reporter or QuietReporter(),
        **options,  # type: ignore[arg-type]
    )
    assert store is not None
    return store


def shards(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "features").glob("*/*.safetensors"))


def test_features_are_the_encoders(encoder: Encoder, images: list[Path]) -> None:
    store = opened(encoder, [*images, images[0]])
    pixels = torch.stack([encoder.transform(load_image(path)) for path in images])
    with torch.inference_mode():
        expected = encoder(pixels)
    assert torch.equal(torch.stack([store[path] for path in images]), expected)
    assert images[0].parent not in store


def test_what_is_there_is_not_computed_again(
    encoder: Encoder, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "_SHARD_IMAGES", 32)
    before = Listener()
    opened(encoder, images[:4], before)
    assert len(before.notes) == 1
    assert "4 images, 32.0 KiB" in before.notes[0]
    again = Listener()
    opened(encoder, images[:4], again)
    assert again.notes == []
    copy = tmp_path / "copy.png"
    shutil.copy(images[0], copy)
    two_more = Listener()
    store = opened(encoder, [*images, copy], two_more)
    assert "2 images" in two_more.notes[0]
    assert torch.equal(store[copy], store[images[0]])


def test_other_weights_or_layers_have_their_own_features(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    first = opened(encoder, images)[images[0]].clone()
    inner = load_encoder("tiny-clip", layer=(-2,)).requires_grad_(False)
    assert not torch.equal(opened(inner, images)[images[0]], first)
    with torch.no_grad():
        next(encoder.backbone.parameters()).add_(0.5)
    assert not torch.equal(opened(encoder, images)[images[0]], first)
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 3


def test_a_torn_shard_is_found_and_redone(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    expected = {path: tokens.clone() for path, tokens in opened(encoder, images).items()}
    (shard,) = shards(tmp_path)
    shard.write_bytes(shard.read_bytes()[:-100])
    store = opened(encoder, images)
    assert len(store) == len(images)
    assert all(torch.equal(store[path], tokens) for path, tokens in expected.items())
    assert shards(tmp_path) != [shard]


@pytest.mark.parametrize("storage", ["exact", "float16"])
def test_rotten_bytes_are_found_and_redone(
    encoder: Encoder, images: list[Path], tmp_path: Path, storage: str
) -> None:
    expected = opened(encoder, images, storage=storage)[images[0]].clone()
    (shard,) = shards(tmp_path)
    content = bytearray(shard.read_bytes())
    content[-4000:] = bytes(4000)
    shard.write_bytes(content)
    with pytest.raises(TrainingError, match=f"{shard.name}.*run the same command again"):
        list(opened(encoder, images, storage=storage).values())
    assert torch.equal(opened(encoder, images, storage=storage)[images[0]], expected)


def _build(paths: list[Path]) -> None:
    torch.set_num_threads(1)
    encoder = load_encoder("tiny-clip").requires_grad_(False)
    opened(encoder, paths)


def test_two_processes_at_once_do_the_work_once(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_build, args=(images,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert len(shards(tmp_path)) == 1
    assert len(opened(encoder, images)) == len(images)


def test_past_the_limit_nothing_is_written(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    listener = Listener()
    store = open_features(encoder, images, device=CPU, reporter=listener, limit_bytes=1000)
    assert store is None
    assert "need 48.0 KiB, more than the 1.0 KiB allowed" in listener.warnings[0]
    assert shards(tmp_path) == []


def test_a_full_disk_keeps_what_was_written(
    encoder: Encoder, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "_SHARD_IMAGES", 2)
    monkeypatch.setattr(feature_cache, "_BATCH", 2)
    save, calls = feature_cache.save_file, []

    def full_at_the_second(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError(28, os.strerror(28))
        save(*arguments, **options)

    monkeypatch.setattr(feature_cache, "save_file", full_at_the_second)
    listener = Listener()
    assert len(opened(encoder, images, listener)) == 2
    assert "no space left" in listener.warnings[0]


def test_a_cache_that_cannot_be_written_is_done_without(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    listener = Listener()
    assert open_features(encoder, images, device=CPU, reporter=listener) is None
    assert "cannot be written" in listener.warnings[0]


def test_corrupt_images_are_named_and_the_others_kept(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    whole = images[3].read_bytes()
    images[3].write_bytes(whole[:50])
    with pytest.raises(DataError, match=rf"of the other 5 images are kept.*{images[3].name}"):
        opened(encoder, images)
    kept = shards(tmp_path)
    images[5].write_bytes(images[5].read_bytes()[:60])
    both = rf"2 images cannot be read.*{images[3].name}.*{images[5].name}"
    with pytest.raises(DataError, match=both):
        opened(encoder, images)
    images[5].unlink()
    images[3].write_bytes(whole)
    listener = Listener()
    opened(encoder, images[:5], listener)
    assert "1 images" in listener.notes[0], "only the mended one is encoded"
    assert set(kept) < set(shards(tmp_path))
    with pytest.raises(DataError, match=r"absent\.png: cannot be read"):
        opened(encoder, [images[0].with_name("absent.png")])


def test_a_tuned_encoder_is_refused(encoder: Encoder, images: list[Path]) -> None:
    encoder.requires_grad_(True)
    with pytest.raises(TrainingError, match="would go stale"):
        opened(encoder, images)


def test_smaller_storage_reports_its_error(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    exact = opened(encoder, images)
    exact_size = shards(tmp_path)[0].stat().st_size
    listener = Listener()
    small = opened(encoder, images, listener, storage="float16")
    difference = torch.stack([small[p].float() - exact[p] for p in images]).norm()
    relative = float(difference / torch.stack([exact[p] for p in images]).norm())
    assert 0 < relative < 1e-3
    reported = float(listener.notes[-1].split("stored ")[1].split("%")[0]) / 100
    assert reported == pytest.approx(relative, rel=0.3, abs=1e-4)
    assert min(path.stat().st_size for path in shards(tmp_path)) < 0.6 * exact_size


def test_ls_and_prune_drop_the_least_recently_used(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    opened(encoder, images)
    opened(encoder, images, storage="float16")
    old, new = list_features()
    os.utime(old.folder / "about.json", (1, 1))
    entries = list_features()
    assert [entry.images for entry in entries] == [6, 6]
    assert {entry.encoder for entry in entries} == {"tiny-clip"}
    removed = prune_features(entries[1].size_bytes)
    assert [entry.folder for entry in removed] == [old.folder]
    assert [entry.folder for entry in list_features()] == [new.folder]
