"""A folder is read once: again where something has changed, and not where nothing has."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from encoder_bench.base.errors import DataError, EncoderBenchError
from encoder_bench.data import index
from encoder_bench.data.folder import DataFolder
from encoder_bench.data.sample import Split
from encoder_bench.data.sample_table import SampleTable


def read(root: Path, split: Split = "test", *, images_required: bool = True) -> SampleTable:
    folder = DataFolder("x", root, images_required=images_required)
    return folder.samples("vqa", reader="vqav2", source="vqav2", split=split)


def test_an_unchanged_folder_is_not_read_again(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [read(damaged, split) for split in ("train", "test")]
    os.utime(damaged / "vqav2" / "v2_mscoco_val2014_annotations.json", (1, 1))  # not its content
    monkeypatch.setattr(DataFolder, "_rows", None)
    again = [read(damaged, split) for split in ("train", "test")]
    assert first == again
    assert [table.fingerprint for table in first] == [table.fingerprint for table in again]
    assert read(damaged).fingerprint != first[0].fingerprint


@pytest.mark.parametrize("what", ["text", "image", "folder"])
def test_a_changed_folder_is(damaged: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read(damaged)
    if what == "text":
        path = damaged / "vqav2" / "v2_mscoco_val2014_annotations.json"
        path.write_text(path.read_text() + " ")
    elif what == "image":
        next((damaged / "coco" / "train2017").iterdir()).write_bytes(b"longer or shorter")
    else:
        damaged = damaged.rename(damaged.with_name("moved"))
    monkeypatch.setattr(DataFolder, "_rows", None)
    with pytest.raises(TypeError, match="not callable"):
        read(damaged)


def test_training_is_read_again_where_another_test_set_comes(damaged: Path) -> None:
    before = read(damaged, "train")
    (damaged / "pope").mkdir()
    asked = {"image": before[0].image_path.name, "text": "Is there a dog?", "label": "yes"}
    (damaged / "pope" / "coco_pope_random.json").write_text(json.dumps(asked))
    after = read(damaged, "train")
    assert set(before.images()) - set(after.images()) == {before[0].image_id}


def test_an_image_that_comes_later_is_found(tmp_path: Path, drawn: Path) -> None:
    def textvqa() -> SampleTable:
        folder = DataFolder("x", tmp_path)
        return folder.samples("t", reader="more-vqa", source="textvqa", split="test")

    row = {"question_id": 5, "image_id": "abc", "question": "Says?", "answers": ["stop"]}
    path = tmp_path / "textvqa" / "TextVQA_0.5.1_val.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"data": [row]}))
    with pytest.raises(DataError, match=r"row 0: no image file for textvqa/train_images/abc\.jpg"):
        textvqa()
    place = tmp_path / "textvqa" / "images" / "abc.jpg"
    place.parent.mkdir()
    shutil.copy(next((drawn / "coco" / "val2017").iterdir()), place)
    assert textvqa()[0].image_path == place.resolve()


def test_missing_images_are_an_error_only_where_they_are_needed(damaged: Path) -> None:
    shutil.rmtree(damaged / "coco" / "val2017")
    table = read(damaged, images_required=False)
    assert len(table.missing()) == len(table.images())
    with pytest.raises(DataError, match="row 0: no image file for id"):
        read(damaged)


def test_a_cache_that_cannot_be_written_is_one_line(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCODER_BENCH_CACHE", "/dev/null/cache")
    with pytest.raises(EncoderBenchError, match=r"cannot write /dev/null.*ENCODER_BENCH_CACHE"):
        read(damaged)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, *rest: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patched:
        patched.setattr(index, "_write", full)
        with pytest.raises(EncoderBenchError, match="no space left on the disk"):
            read(damaged)
    assert not list((tmp_path / "cache" / "index").glob("*/*"))
    assert read(damaged)
