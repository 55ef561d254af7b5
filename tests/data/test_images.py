"""Images are the files that annotations name, of any format, and are not needed for scoring."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from encoder_bench.base.errors import DataError
from encoder_bench.cli.app import app
from encoder_bench.data.files import FOLLOW_LINKS
from encoder_bench.data.folder import DataFolder, check_disjoint
from encoder_bench.data.images import load_image
from encoder_bench.data.readers.captions import read_instances
from encoder_bench.data.sample import Sample, Split


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(path)


def shade(sample: Sample) -> int:
    pixel = load_image(sample.image_path).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return round(pixel[0])


def captions(root: Path, part: str, names: dict[int, str]) -> None:
    path = root / "coco" / "annotations" / f"captions_{part}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": n, "file_name": name} for n, name in names.items()]
    lines = [{"id": n, "image_id": n, "caption": f"{part} {n}"} for n in names]
    path.write_text(json.dumps({"images": rows, "annotations": lines}))


def questions(root: Path, *images: int | str) -> None:
    (root / "gvtbench").mkdir(exist_ok=True)
    rows = [
        {"image_id": n, "text_in": "Does it?", "text_out": "Yes.", "n_obj_exist": 1} for n in images
    ]
    (root / "gvtbench" / "coco_mci.json").write_text(json.dumps(rows))


def read(
    root: Path, task: str = "captioning", split: Split = "test", **options: Any
) -> list[Sample]:
    reader, source = {"captioning": ("coco-captions", "captions"), "mci": ("gvtbench", "coco_mci")}[
        task
    ]
    return DataFolder("x", root, **options).samples(task, reader=reader, source=source, split=split)


@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "tiff", "avif"])
def test_the_file_name_decides_not_the_digits_in_it(tmp_path: Path, ending: str) -> None:
    names = {100 + n: f"shot_{101 + (n + 1) % 8}.{ending}" for n in range(1, 9)}
    for number, name in names.items():
        picture(tmp_path / "coco" / "val2017" / name, number)
    captions(tmp_path, "val", names)
    samples = read(tmp_path)
    assert [s.image_path.name for s in samples] == list(names.values())
    assert all(abs(shade(s) - 100 - n) <= 3 for n, s in enumerate(samples, start=1))
    questions(tmp_path, 101)
    with pytest.raises(DataError, match="no image file for id 101"):
        read(tmp_path, "mci")


def test_ids_that_begin_again_in_each_split_are_no_identity(tmp_path: Path) -> None:
    for part, count, tone in (("train", 12, 0), ("val", 8, 100)):
        names = {n: f"{n:012}.png" for n in range(1, count + 1)}
        for number, name in names.items():
            picture(tmp_path / "coco" / f"{part}2017" / name, tone + number)
        captions(tmp_path, part, names)
    questions(tmp_path, 3)
    train, test = read(tmp_path, split="train"), read(tmp_path)
    assert [shade(s) for s in test] == [100 + n for n in range(1, 9)]
    assert [shade(s) for s in train] == list(range(1, 13))
    check_disjoint(train, test)
    (asked,) = read(tmp_path, "mci")
    assert shade(asked) == 103
    assert asked.image_id == test[2].image_id == "coco/val2017/000000000003.png"


def test_a_copy_in_the_other_split_is_the_same_image_and_not_trained_on(tmp_path: Path) -> None:
    for part, numbers in (("train", (1, 2, 3)), ("val", (3, 4))):
        names = {n: f"{n:012}.png" for n in numbers}
        for number, name in names.items():
            picture(tmp_path / "coco" / f"{part}2017" / name, number)
        captions(tmp_path, part, names)
    assert [s.image_id for s in read(tmp_path)] == [3, 4]
    assert [s.image_id for s in read(tmp_path, split="train")] == [1, 2]


def test_whole_numbers_may_be_written_as_exporting_tools_write_them(tmp_path: Path) -> None:
    annotations = tmp_path / "coco" / "annotations"
    annotations.mkdir(parents=True)
    for number in (1, 2):
        picture(tmp_path / "coco" / "train2017" / f"{number:012}.png", number)
    images = [{"id": n, "file_name": f"{int(n):012}.png"} for n in (1.0, "2")]
    boxes = [
        {"image_id": "1", "category_id": 3.0, "iscrowd": None},
        {"image_id": 2.0, "category_id": "3"},
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": "3", "name": "cup"}]}
    file = annotations / "instances_train2017.json"
    file.write_text(json.dumps(content))
    assert read_instances(file).counts == {1: {"cup": 1}, 2: {"cup": 1}}
    boxes[1]["image_id"] = 2.5
    file.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match="annotations row 1: 'image_id': Expected `int`, got `float`"
    ):
        read_instances(file)


def test_copies_of_photos_without_numbers_are_not_trained_on(tmp_path: Path) -> None:
    """As where questions were made of the same instances that training has."""
    for number, name in enumerate(("a", "b", "c"), start=1):
        picture(tmp_path / "coco" / "train2017" / f"{name}.png", number)
    captions(tmp_path, "train", {n: f"{name}.png" for n, name in enumerate("abc", start=1)})
    assert len(read(tmp_path, split="train")) == 3
    picture(tmp_path / "photos" / "mine" / "one.png", 2)
    row = {"image_id": "photos/mine/one.png", "text_in": "Does cup exist in the image?"}
    (tmp_path / "gvtbench").mkdir()
    asked = [row | {"text_out": "Yes.", "n_obj_exist": 1}]
    (tmp_path / "gvtbench" / "coco_mci.json").write_text(json.dumps(asked))
    assert read(tmp_path, "mci")[0].image_path.is_file()
    assert [shade(s) for s in read(tmp_path, split="train")] == [1, 3]
    picture(tmp_path / "photos" / "mine" / "one.png", 3)
    assert [shade(s) for s in read(tmp_path, split="train")] == [1, 2], "read again"


def test_a_test_image_that_is_not_there_is_left_out_by_its_name(tmp_path: Path) -> None:
    """In whatever script: training asks about an image by the path that the test set gives."""
    (tmp_path / "gvtbench").mkdir()
    row = {"image_id": "photos/Jürgen/鳥.png", "text_in": "Does cup exist in the image?"}
    asked = [row | {"text_out": "Yes.", "n_obj_exist": 1}]
    (tmp_path / "gvtbench" / "coco_mci.json").write_text(json.dumps(asked))
    folder = DataFolder("x", tmp_path, images_required=False)
    assert folder._is_tested(row["image_id"], tmp_path / "elsewhere.png")
    assert not folder._is_tested("photos/other.png", tmp_path / "elsewhere.png")


def test_a_copy_without_a_number_of_a_photo_with_one_is_not_trained_on(tmp_path: Path) -> None:
    picture(tmp_path / "coco" / "val2017" / "000000000003.png", 3)
    captions(tmp_path, "val", {3: "000000000003.png"})
    for name, tone in (("a", 1), ("c", 3)):
        picture(tmp_path / "coco" / "train2017" / f"{name}.png", tone)
    captions(tmp_path, "train", {1: "a.png", 2: "c.png"})
    assert [shade(s) for s in read(tmp_path, split="train")] == [1]


def test_one_image_of_coco_is_one_image_in_the_folders_of_both_years(tmp_path: Path) -> None:
    picture(tmp_path / "coco" / "train2017" / "000000000042.png", 7)
    picture(tmp_path / "coco" / "val2014" / "COCO_val2014_000000000042.png", 8)
    questions(tmp_path, 42)
    (sample,) = read(tmp_path, "mci")
    assert (sample.image_id, shade(sample)) == (42, 8)


def test_two_files_for_one_image_are_refused_unless_they_are_equal(tmp_path: Path) -> None:
    one, two = tmp_path / "val2017" / "000000000001.png", tmp_path / "coco" / "val2017" / "1.png"
    picture(one, 1)
    picture(two, 1)
    questions(tmp_path, 1)
    assert read(tmp_path, "mci")[0].image_id == 1
    picture(two, 2)
    with pytest.raises(DataError, match="row 0: image 1 may be") as error:
        read(tmp_path, "mci")
    assert str(one) in str(error.value)
    assert str(two) in str(error.value)


def test_links_are_followed_inside_the_folder_and_beyond_it_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, outside = tmp_path / "data", tmp_path / "outside.png"
    link = root / "coco" / "val2017" / "000000000001.png"
    picture(root / "blobs" / "a.png", 5)
    picture(outside, 6)
    link.parent.mkdir(parents=True)
    captions(root, "val", {1: link.name})
    link.symlink_to("../../blobs/a.png")
    assert shade(read(root)[0]) == 5
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(DataError, match=f"leaves the folder .*{FOLLOW_LINKS}=1"):
        read(root)
    monkeypatch.setenv(FOLLOW_LINKS, "1")
    assert shade(read(root)[0]) == 6


@pytest.mark.parametrize("name", ["../../../outside.png", "{}/outside.png"])
def test_a_file_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    picture(tmp_path / "outside.png", 6)
    (root / "coco" / "val2017").mkdir(parents=True)
    captions(root, "val", {1: name.format(tmp_path)})
    with pytest.raises(DataError, match="leaves the folder"):
        read(root)


def test_check_counts_missing_images_and_score_needs_none(damaged: Path, tmp_path: Path) -> None:
    shutil.rmtree(damaged / "coco" / "val2017")
    checked = CliRunner().invoke(app, ["data", "check", str(damaged), "--images"])
    assert checked.exit_code == 1
    assert "PROBLEM  20 images are missing, the first: " in checked.stdout
    assert "30 images decoded" in checked.stdout
    assert checked.stdout.count("samples") == 8
    with pytest.raises(DataError, match="no image file"):
        read(damaged, "mci")
    rows = [
        {"sample_id": sample.sample_id, "answer": sample.target}
        for sample in read(damaged, "mci", images_required=False)
    ]
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    arguments = ["score", "mci", "--predictions", str(tmp_path / "answers.json")]
    scored = CliRunner().invoke(app, [*arguments, "--data", str(damaged)], catch_exceptions=False)
    assert "100.00" in scored.stdout


@pytest.mark.parametrize(
    ("entry", "form"), [(5, "int"), (None, "null"), ("red", "str"), (["red"], "array")]
)
def test_an_answer_that_is_no_object_is_named(damaged: Path, entry: Any, form: str) -> None:
    path = damaged / "vqav2" / "v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][4]["answers"][2] = entry
    path.write_text(json.dumps(content))
    checked = CliRunner().invoke(app, ["data", "check", str(damaged)])
    assert (
        f"{path}: annotations row 4: 'answers[2]': Expected `object`, got `{form}`"
        in checked.stdout
    )


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_16_bits_of_grey_are_scaled_by_their_depth(tmp_path: Path, ending: str) -> None:
    levels = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / f"deep.{ending}")
    loaded = np.asarray(load_image(tmp_path / f"deep.{ending}"))
    assert loaded[0].tolist() == [[0] * 3, [100] * 3, [255] * 3]


def test_an_image_is_turned_as_its_exif_orientation_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (2, 3))
    image.putpixel((0, 0), (255, 0, 0))
    image.save(tmp_path / "turned.png", exif=exif)
    loaded = load_image(tmp_path / "turned.png")
    assert loaded.size == (3, 2)
    assert loaded.getpixel((2, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image.convert(mode).save(tmp_path / "clear.png")
    assert [load_image(tmp_path / "clear.png").getpixel((x, 0)) for x in (0, 1)] == [
        (255, 255, 255), (0, 0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("F", (4, 4)), "pixels of 32 bits.*8 or 16"),
        (Image.new("RGB", (2, 201)), "2 x 201 pixels.*100 times.*crop it"),
        (Image.new("RGB", (90, 90)), "too large.*scale it down"),
    ],
)
def test_what_cannot_be_shown_says_what_to_do(
    image: Image.Image, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    image.save(tmp_path / "odd.tiff")
    with pytest.raises(DataError, match=message) as caught:
        load_image(tmp_path / "odd.tiff")
    assert "fetch it again" not in str(caught.value)


def test_plain_pictures_stay_byte_for_byte(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "plain.png")), pixels)
