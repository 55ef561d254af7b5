"""Weights that were cut short, changed or swapped are refused by their hash."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from encoder_bench.base import hashing
from encoder_bench.base.errors import WeightsError
from encoder_bench.base.hashing import hash_file, known_hash
from encoder_bench.encoders.bundled import seeded_backbone, tiny_processor
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.encoders.weights import verify_weights


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path / "cache"))


def checkpoint(folder: Path) -> Path:
    seeded_backbone("dino").save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder / "model.safetensors"


def flip_one_weight(file: Path) -> None:
    """Change one number and nothing else: the file stays valid."""
    state = load_file(file)
    state["layernorm.bias"][0] += 0.5
    save_file(state, file, metadata={"format": "pt"})


def as_hub_cache(folder: Path, repository: str) -> Path:
    """Lay the folder out as the Hub's cache does: a snapshot of links to files named by hash."""
    root = folder.parent / "hub" / f"models--{repository.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot, blobs = root / "snapshots" / commit, root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    for file in folder.iterdir():
        blob = blobs / hash_file(file)
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blob)
    return root.parent


def test_a_changed_file_of_the_hub_cache_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    checkpoint(tmp_path / "weights")
    hub = as_hub_cache(tmp_path / "weights", "someone/dino")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = load_encoder("hf:someone/dino")
    assert encoder.weights_revision == "0123456789abcdef0123456789abcdef01234567"
    (blob,) = (p.resolve() for p in hub.rglob("model.safetensors"))
    flip_one_weight(blob)
    with pytest.raises(WeightsError, match=r"damaged or was changed: its sha256 is .* published"):
        load_encoder("hf:someone/dino")


def test_a_folder_with_sha256sums_is_compared(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "weights")
    sums = file.parent / "SHA256SUMS"
    sums.write_text(f"{hash_file(file)}  {file.name}\n")
    assert load_encoder(f"dir:{file.parent}").pretrained
    flip_one_weight(file)
    with pytest.raises(WeightsError, match="fetch it again"):
        load_encoder(f"dir:{file.parent}")


def test_shipped_weights_are_compared_with_their_card(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "weights")
    card = file.parent / "card.json"
    card.write_text(json.dumps({"weights_sha256": hash_file(file)}))
    load_encoder("tiny-dino", weights=file.parent)
    flip_one_weight(file)
    with pytest.raises(WeightsError, match="damaged"):
        load_encoder("tiny-dino", weights=file.parent)


def test_timm_and_open_clip_files_are_compared_too(tmp_path: Path) -> None:
    import timm

    file = tmp_path / "model.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), file)
    encoder = load_encoder("timm:vit_tiny_patch16_224", weights=tmp_path)
    assert encoder.weights_revision == f"sha256:{hash_file(file)}"
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    with pytest.raises(WeightsError, match="published is 000000000000"):
        load_encoder("timm:vit_tiny_patch16_224", weights=tmp_path)


def test_a_hash_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.safetensors"
    for content in (b"one", b"another"):
        file.write_bytes(content)
        assert known_hash(file) == hash_file(file)  # just written, it may change again unseen
    os.utime(file, (1, 1))
    assert known_hash(file) == hash_file(file)
    monkeypatch.setattr(hashing, "hash_file", None)
    assert known_hash(file) == hash_file(file)
    os.utime(file, (2, 2))
    with pytest.raises(TypeError):
        known_hash(file)


def test_files_without_a_known_hash_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"one")
    assert verify_weights("x", tmp_path) == 0
