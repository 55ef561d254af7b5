"""The readers on files in the official layouts: what is read, and what is said of bad files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from encoder_bench.base.errors import DataError, UnknownNameError
from encoder_bench.data.folder import DataFolder, check_disjoint, open_data
from encoder_bench.data.images import load_image
from encoder_bench.data.readers.captions import read_instances
from encoder_bench.data.readers.gvtbench import plural
from encoder_bench.data.sample import Sample, Split

READERS = {
    "vqa": ("vqav2", "vqav2"),
    "captioning": ("coco-captions", "captions"),
    "oc": ("gvtbench", "coco_oc"),
    "mci": ("gvtbench", "coco_mci"),
}


def read(root: Path, task: str, split: Split, **options: Any) -> list[Sample]:
    reader, source = READERS[task]
    return DataFolder("test", root).samples(
        task, reader=reader, source=source, split=split, **options
    )


def read_both(root: Path, *tasks: str) -> None:
    for task in tasks:
        read(root, task, "train")
        read(root, task, "test")


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


@pytest.mark.parametrize("task", READERS)
def test_training_and_test_share_no_image(drawn: Path, task: str) -> None:
    train, test = read(drawn, task, "train"), read(drawn, task, "test")
    assert train
    assert test
    check_disjoint(train, test)
    assert {s.task for s in [*train, *test]} == {task}
    assert all(s.image_path.is_file() and s.references for s in [*train, *test])


def test_shared_images_are_refused(drawn: Path) -> None:
    test = read(drawn, "oc", "test")
    with pytest.raises(DataError, match="share"):
        check_disjoint(test[:1], test)


def test_a_limit_is_a_drawn_subset_whatever_the_order(drawn: Path) -> None:
    few = read(drawn, "vqa", "test", limit=7)
    assert len(few) == 7
    assert few != read(drawn, "vqa", "test")[:7]
    order = [s.sample_id for s in read(drawn, "vqa", "test")]
    assert [s.sample_id for s in few] == sorted((s.sample_id for s in few), key=order.index)


def test_generated_questions_tell_the_truth(drawn: Path) -> None:
    instances = read_instances(drawn / "coco" / "annotations" / "instances_train2017.json")
    plurals = {plural(name): name for name in instances.categories}
    zeros = 0
    for sample in read(drawn, "oc", "train"):
        name = plurals[sample.question.removeprefix("How many ").split(" are there")[0]]
        assert isinstance(sample.image_id, int)
        assert int(sample.target) == instances.counts[sample.image_id][name]
        zeros += sample.target == "0"
    assert zeros > 0
    answers = [sample.target for sample in read(drawn, "mci", "train")]
    assert answers.count("Yes.") == answers.count("No.")


QUESTIONS = "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
ANSWERS = "vqav2/v2_mscoco_val2014_annotations.json"
COUNTS = "gvtbench/coco_oc.json"
CAPTIONS = "coco/dataset_coco.json"


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def set_first(key: str, field: str, value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        def apply(content: Any) -> None:
            rows = content[key] if key else content
            rows[0][field] = value

        edit(path, apply)

    return change


def double_first(key: str) -> Callable[[Path], None]:
    return lambda path: edit(path, lambda content: content[key].append(content[key][0]))


@pytest.mark.parametrize(
    ("task", "file", "damage", "words"),
    [
        ("vqa", QUESTIONS, half, ["not valid JSON", "cut short"]),
        ("vqa", QUESTIONS, lambda path: path.write_text("[" * 100_000), ["Expected `object`"]),
        ("vqa", QUESTIONS, lambda path: path.write_text("9" * 5000), ["out of range"]),
        ("oc", COUNTS, set_first("", "text_in", "How many \ud800?"), ["not valid JSON"]),
        ("vqa", QUESTIONS, Path.unlink, ["no v2_OpenEnded_mscoco_val2014_questions.json|no vqa"]),
        ("vqa", QUESTIONS, double_first("questions"), ["duplicate 'question_id'"]),
        ("vqa", ANSWERS, half, ["not valid JSON"]),
        (
            "vqa",
            ANSWERS,
            set_first("annotations", "question_id", 7),
            ["row 0", "7 has no question"],
        ),
        ("vqa", ANSWERS, set_first("annotations", "answers", []), ["row 0", "'answers'"]),
        (
            "vqa",
            ANSWERS,
            set_first("annotations", "image_id", "twelve"),
            ["row 0: 'image_id': Expected `int`"],
        ),
        ("vqa", ANSWERS, set_first("annotations", "image_id", 5), ["another 'image_id'"]),
        ("oc", COUNTS, set_first("", "text_out", " "), ["row 0", "'text_out' is empty"]),
        ("oc", COUNTS, set_first("", "image_id", 5), ["row 0", "no image file for id 5"]),
        ("oc", COUNTS, set_first("", "image_id", "../../etc/passwd"), ["leaves the folder"]),
        ("oc", COUNTS, set_first("", "image_id", "/etc/passwd"), ["leaves the folder"]),
        (
            "oc",
            COUNTS,
            set_first("", "image_id", None),
            ["row 0: 'image_id': Expected `int | str`, got `null`"],
        ),
        (
            "oc",
            COUNTS,
            set_first("", "n_obj_exist", True),
            ["row 0: 'n_obj_exist': Expected"],
        ),
        ("oc", COUNTS, lambda path: path.write_text("[]"), ["is empty"]),
        ("oc", COUNTS, lambda path: path.write_text("{}"), ["Expected `array`"]),
        ("captioning", CAPTIONS, double_first("images"), ["duplicate 'cocoid'|split is empty"]),
    ],
)
def test_bad_files_are_named_with_their_row(
    damaged: Path, task: str, file: str, damage: Callable[[Path], Any], words: list[str]
) -> None:
    path = damaged / file
    damage(path)
    with pytest.raises(DataError) as error:
        read_both(damaged, task)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert any(option in message for option in word.split("|")), message
    assert str(damaged) in message


def test_a_link_out_of_the_folder_is_refused(damaged: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.png"
    first = next((damaged / "coco" / "val2017").iterdir())
    outside.write_bytes(first.read_bytes())
    image_id = int(first.stem)
    first.unlink()
    first.symlink_to(outside)
    with pytest.raises(DataError, match=f"leaves the folder|{image_id}"):
        read_both(damaged, *READERS)


def test_pictures_that_are_missing_cut_or_no_pictures(drawn: Path, tmp_path: Path) -> None:
    whole = next((drawn / "coco" / "val2017").iterdir())
    assert load_image(whole).size == (72, 72)
    with pytest.raises(DataError, match="no such image file"):
        load_image(tmp_path / "none.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:600])
    with pytest.raises(DataError, match=r"cut\.png"):
        load_image(cut)
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    with pytest.raises(DataError, match="not an image"):
        load_image(text)


def test_unknown_reader_and_missing_folder(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'gvtbench'"):
        DataFolder("x", drawn).samples("oc", reader="gvtbnch", source="coco_oc", split="test")
    with pytest.raises(DataError, match="no such folder"):
        open_data("/nowhere/at/all")
    monkeypatch.delenv("COCO", raising=False)
    with pytest.raises(DataError, match="environment variable COCO"):
        open_data("coco")


def test_the_fingerprint_sees_annotations_and_images(damaged: Path) -> None:
    before = DataFolder("x", damaged).fingerprint()
    assert DataFolder("y", damaged).fingerprint() == before
    edit(damaged / COUNTS, lambda rows: rows.pop())
    changed = DataFolder("x", damaged).fingerprint()
    assert changed != before
    next((damaged / "coco" / "val2017").iterdir()).unlink()
    assert DataFolder("x", damaged).fingerprint() != changed


def test_the_real_slice_is_read_and_kept_apart(real_data: Path) -> None:
    folder = DataFolder("real", real_data)
    train: list[Sample] = []
    test: list[Sample] = []
    sizes = {}
    for task, (reader, source) in READERS.items():
        got = folder.samples(task, reader=reader, source=source, split="test")
        train += folder.samples(task, reader=reader, source=source, split="train")
        test += got
        sizes[task] = len(got)
    check_disjoint(train, test)
    assert sizes["captioning"] == 159
    assert sizes["oc"] == 348
    assert sizes["mci"] == 407
    assert 0 < sizes["vqa"] < len(test)
