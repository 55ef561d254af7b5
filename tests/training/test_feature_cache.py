"""The feature cache: exact, shared, and harmless where disks and files are not."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from encoder_bench.base.errors import (
    DataError,
    EncoderBenchError,
    RecipeError,
    TrainingError,
    WeightsError,
)
from encoder_bench.base.paths import list_features, prune
from encoder_bench.base.progress import QuietReporter
from encoder_bench.data.images import load_image
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.training import batch_encoder, feature_cache, feature_shards
from encoder_bench.training.feature_cache import FeatureStore, open_features
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
    return open_features(
        encoder,
        images,
        device=CPU,
        reporter=reporter or QuietReporter(),
        **options,  # type: ignore[arg-type]
    )


def filled(
    encoder: Encoder, images: list[Path], reporter: QuietReporter | None = None, **options: object
) -> FeatureStore:
    store = opened(encoder, images, reporter, **options)
    store.fill()
    store.close()
    return store


def shards(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "features").glob("*/*.safetensors"))


def test_features_are_the_encoders(encoder: Encoder, images: list[Path]) -> None:
    store = opened(encoder, [*images, images[0]])
    assert store.missing() == images
    pixels = torch.stack([encoder.transform(load_image(path)) for path in images])
    with torch.inference_mode():
        expected = encoder(pixels)
    assert torch.equal(torch.stack([store[path] for path in images]), expected)
    assert images[0].parent not in store
    with pytest.raises(KeyError):
        store[images[0].parent]


def test_what_is_there_is_not_computed_again(
    encoder: Encoder, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Listener()
    filled(encoder, images[:4], before)
    assert len(before.notes) == 1
    assert "up to 4 of 4 images to encode, 72.0 KiB" in before.notes[0]
    again = Listener()
    with monkeypatch.context() as patch:
        patch.setattr(batch_encoder, "read_image_bytes", None)  # no image is opened
        store = filled(encoder, images[:4], again)
        assert len(list(store.values())) == 4
    assert again.notes == []
    assert (store.encoded, store.found) == (0, 4)
    copy = tmp_path / "copy.png"
    shutil.copy(images[0], copy)
    two_more = Listener()
    store = filled(encoder, [*images, copy], two_more)
    assert "3 of 7 images" in two_more.notes[0], "the copy is not known by its name"
    assert torch.equal(store[copy], store[images[0]])
    assert store.encoded == 2
    third = Listener()
    assert not opened(encoder, [copy], third).missing()
    assert third.notes == [], "now it is"


def test_other_weights_or_layers_have_their_own_features(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    first = opened(encoder, images)[images[0]]
    inner = load_encoder("tiny-clip", layer=(-2,)).requires_grad_(False)
    assert not torch.equal(opened(inner, images)[images[0]], first)
    with torch.no_grad():
        next(encoder.backbone.parameters()).add_(0.5)
    assert not torch.equal(opened(encoder, images)[images[0]], first)
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_feature_does_not_depend_on_what_it_is_encoded_with(
    images: list[Path], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder("tiny-clip", dtype=dtype).requires_grad_(False)
    expected = filled(encoder, images)
    monkeypatch.setattr(batch_encoder, "_CPU_BATCH", 4)
    for number, order in enumerate((images[::-1], images[2:4], images[5:])):
        monkeypatch.setenv("ENCODER_BENCH_CACHE", f"{images[0].parent}-{number}")
        store = opened(encoder, order)
        assert all(torch.equal(store[path], expected[path]) for path in order)


def test_what_is_asked_for_comes_with_the_next_ones_of_the_order(
    encoder: Encoder, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_encoder, "_CPU_BATCH", 2)
    store = opened(encoder, images)
    encoder.register_forward_hook(lambda _, pixels, __: seen.append(len(pixels[0])))
    seen: list[int] = []
    store[images[1]]
    assert (store.encoded, seen) == (2, [2])
    store[images[2]]
    assert len(seen) == 1, "encoded with the one before"
    store[images[0]]
    assert store.encoded == 4, "the next ones that are missing"
    store[images[5]]
    assert (store.encoded, seen[-1]) == (5, 2), "a pass always has the same shape"
    assert store.missing() == [images[4]]
    store.close()
    assert opened(encoder, images).missing() == [images[4]]


def test_a_file_that_changed_is_encoded_again(encoder: Encoder, images: list[Path]) -> None:
    before = filled(encoder, images)[images[0]]
    images[0].write_bytes(images[1].read_bytes())
    store = opened(encoder, images)
    assert store.missing() == images[:1]
    assert torch.equal(store[images[0]], store[images[1]])
    assert not torch.equal(store[images[0]], before)
    assert store.encoded == 0, "its content was known"


def test_an_image_in_an_archive_is_found_again(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for path in images[:3]:
            archive.add(path, path.name)
    inside = [tmp_path / "shard.tar" / path.name for path in images[:3]]
    store = filled(encoder, [*inside, images[0]])
    assert store.encoded == 3
    assert torch.equal(store[inside[0]], store[images[0]])
    assert not opened(encoder, inside).missing()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.93 GiB, max allowed: 9.07 GiB)."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["cuda", "mps", "cpu"],
)
def test_an_encoder_too_large_for_a_batch_gets_fewer_images(
    error: RuntimeError, encoder: Encoder, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, sizes = encoder.forward, []

    def of_three_at_most(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        if len(pixels) > 3:
            raise error
        return forward(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "forward", of_three_at_most)
        small = dict(opened(encoder, images))
    assert sizes == [8, 4, 2, 2, 2]
    assert all(torch.equal(tokens, small[path]) for path, tokens in opened(encoder, images).items())


def test_threads_may_ask_at_once(encoder: Encoder, images: list[Path]) -> None:
    store = opened(encoder, images)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(store.__getitem__, images * 5))
    assert store.encoded == 6
    assert all(
        torch.equal(tokens, store[path]) for path, tokens in zip(images * 5, found, strict=True)
    )


def test_a_torn_shard_is_found_and_redone(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    expected = {path: tokens.clone() for path, tokens in filled(encoder, images).items()}
    (shard,) = shards(tmp_path)
    shard.write_bytes(shard.read_bytes()[:-100])
    store = filled(encoder, images)
    assert len(store) == len(images)
    assert all(torch.equal(store[path], tokens) for path, tokens in expected.items())
    assert shards(tmp_path) != [shard]


@pytest.mark.parametrize("storage", ["exact", "float16"])
def test_rotten_bytes_are_found_and_redone(
    encoder: Encoder, images: list[Path], tmp_path: Path, storage: str
) -> None:
    written = filled(encoder, images, storage=storage)
    expected = {path: tokens.clone() for path, tokens in written.items()}
    (shard,) = shards(tmp_path)
    content = bytearray(shard.read_bytes())
    content[-4000:] = bytes(4000)
    shard.write_bytes(content)
    listener = Listener()
    store = opened(encoder, images, listener, storage=storage)
    assert not store.missing()
    assert all(torch.equal(store[path], tokens) for path, tokens in expected.items())
    assert store.encoded > 0
    assert "damaged on disk" in listener.warnings[0]
    store.close()
    assert len(shards(tmp_path)) == 1
    assert shards(tmp_path) != [shard]


def _build(paths: list[Path]) -> None:
    torch.set_num_threads(1)
    encoder = load_encoder("tiny-clip").requires_grad_(False)
    filled(encoder, paths)


def test_two_processes_at_once_do_the_work_once(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_build, args=(images,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert len(shards(tmp_path)) == 1
    assert not opened(encoder, images).missing()


def test_past_the_limit_nothing_is_written(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    listener = Listener()
    store = opened(encoder, images, listener, limit_bytes=1000)
    assert "need 108.0 KiB, more than the 1.0 KiB allowed" in listener.warnings[0]
    assert not store, "whoever asks encodes it"
    assert torch.equal(store[images[0]], opened(encoder, images)[images[0]])
    store.close()
    assert shards(tmp_path) == []
    with pytest.raises(EncoderBenchError, match=r"allowed; with .*feature_storage float16"):
        opened(encoder, images, limit_bytes=1000, storage="float16")


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, os.strerror(28)),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
    ],
)
def test_a_full_disk_keeps_what_was_written(
    encoder: Encoder, images: list[Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(feature_cache, "_SHARD_IMAGES", 2)
    monkeypatch.setattr(batch_encoder, "_CPU_BATCH", 2)
    save, calls = feature_shards.save_file, []

    def full_at_the_second(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) > 1:
            raise error
        save(*arguments, **options)

    listener = Listener()
    with monkeypatch.context() as patch:
        patch.setattr(feature_shards, "save_file", full_at_the_second)
        store = opened(encoder, images, listener)
        found = [store[path] for path in images]
    assert "no space left" in listener.warnings[0]
    assert len(listener.warnings) == 1
    assert list(store)[:2] == images[:2], "what was written"
    assert len(store) < len(images)
    store.close()
    assert len(opened(encoder, images).missing()) == 4
    assert all(map(torch.equal, found, opened(encoder, images).values()))


def test_a_cache_that_cannot_be_written_is_done_without(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    listener = Listener()
    assert not opened(encoder, images, listener)
    assert "cannot be written" in listener.warnings[0]


def test_corrupt_images_are_named_and_the_others_kept(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    whole = images[3].read_bytes()
    images[3].write_bytes(whole[:50])
    with pytest.raises(DataError, match=rf"of the other 5 images are kept.*{images[3].name}"):
        filled(encoder, images)
    kept = shards(tmp_path)
    images[5].write_bytes(images[5].read_bytes()[:60])
    both = rf"2 images cannot be read.*{images[3].name}.*{images[5].name}"
    with pytest.raises(DataError, match=both):
        filled(encoder, images)
    store = opened(encoder, images)
    assert len([store[path] for path in images[:3]]) == 3
    for _ in range(2):
        with pytest.raises(DataError, match=images[3].name):
            store[images[3]]
    images[5].unlink()
    images[3].write_bytes(whole)
    assert filled(encoder, images[:5]).encoded == 1, "only the mended one is encoded"
    assert set(kept) < set(shards(tmp_path))
    with pytest.raises(DataError, match=r"absent\.png: cannot be read"):
        filled(encoder, [images[0].with_name("absent.png")])


def test_a_tuned_encoder_is_refused(encoder: Encoder, images: list[Path]) -> None:
    encoder.requires_grad_(True)
    with pytest.raises(TrainingError, match="would go stale"):
        opened(encoder, images)


def test_smaller_storage_reports_its_error(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    exact = filled(encoder, images)
    exact_size = shards(tmp_path)[0].stat().st_size
    listener = Listener()
    small = filled(encoder, images, listener, storage="float16")
    unwritten = opened(encoder, images, storage="float16")
    assert {tokens.dtype for tokens in unwritten.values()} == {torch.float16}
    difference = torch.stack([small[p].float() - exact[p] for p in images]).norm()
    relative = float(difference / torch.stack([exact[p] for p in images]).norm())
    assert 0 < relative < 1e-3
    reported = float(small.summary().split("stored ")[1].split("%")[0]) / 100
    assert reported == pytest.approx(relative, rel=0.3, abs=1e-4)
    assert min(path.stat().st_size for path in shards(tmp_path)) < 0.6 * exact_size


def test_features_that_are_not_finite_are_not_kept(encoder: Encoder, images: list[Path]) -> None:
    next(encoder.parameters()).data.fill_(torch.nan)
    store = opened(encoder, images)
    with pytest.raises(WeightsError, match=r"tiny-clip: .* not finite .*, in float32; check its"):
        store[images[0]]
    assert store.missing() == images
    store.close()
    assert opened(encoder, images).missing() == images


def test_storage_that_cannot_hold_the_features_is_refused(
    encoder: Encoder, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda pixels: 1e6 * forward(pixels))
    assert filled(encoder, images)[images[0]].abs().max() > 65_504
    store = opened(encoder, images, storage="float16")
    with pytest.raises(RecipeError, match=r"float16 holds no value beyond 65,504.* to exact"):
        store.fill()
    store.close()
    assert opened(encoder, images, storage="float16").missing() == images


def test_ls_and_prune_drop_the_least_recently_used(
    encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    filled(encoder, images)
    filled(encoder, images, storage="float16")
    old, new = list_features()
    os.utime(old.folder / "about.json", (1, 1))
    entries = list_features()
    assert [entry.items for entry in entries] == [6, 6]
    assert {entry.of for entry in entries} == {"tiny-clip (exact)", "tiny-clip (float16)"}
    removed = prune(entries, entries[1].size_bytes)
    assert [entry.folder for entry in removed] == [old.folder]
    assert [entry.folder for entry in list_features()] == [new.folder]


def test_a_shard_that_cannot_be_opened_now_is_kept(
    encoder: Encoder, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError("No such file or directory")  # safetensors of too many open files

    filled(encoder, images)
    before = shards(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(feature_shards, "safe_open", refuse)
        opened(encoder, images).close()
    assert shards(tmp_path) == before
    assert not opened(encoder, images).missing()


def test_a_cache_that_is_pruned_during_a_run_is_listed_again(
    encoder: Encoder, images: list[Path]
) -> None:
    store = opened(encoder, images)
    shutil.rmtree(list_features()[0].folder)
    store.fill()
    store.close()
    assert [entry.items for entry in list_features()] == [len(images)]


def test_what_another_process_encoded_is_not_kept_decoded(
    encoder: Encoder, images: list[Path]
) -> None:
    store = opened(encoder, images)
    store._encoder.size, store._encoder.ahead = 1, 4
    store._start(images[0])
    assert len(store._encoder._waiting) > 1
    filled(encoder, images)
    store._refreshed = float("-inf")
    assert store[images[0]] is not None
    assert set(store._encoder._waiting) <= {images[0]}
    store.close()
