"""Data sets saved by `datasets`, written in the official layouts and read back."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.data.folder import DataFolder
from encoder_bench.data.hub import import_dataset


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (12, 8), (shade, 0, 0))


def answers(text: str) -> list[dict[str, object]]:
    return [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]


def saved(folder: Path, rows: dict[str, list[object]]) -> Path:
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data.save_to_disk(str(folder))
    return folder


def test_questions_are_read_back_as_they_were(tmp_path: Path) -> None:
    source = saved(
        tmp_path / "source",
        {
            "image": [picture(10), picture(10), picture(200)],
            "image_id": [4, 4, 5],
            "question": ["What color?", "How many?", "Is it red?"],
            "question_id": [40, 41, 50],
            "answers": [answers("red"), answers("2"), answers("yes")],
            "multiple_choice_answer": ["red", "2", "yes"],
            "answer_type": ["other", "number", "yes/no"],
            "question_type": ["what", "how many", "is it"],
        },
    )
    output = tmp_path / "data"
    count = import_dataset(
        str(source), output, kind="vqav2", split="x", part="val", reporter=QuietReporter()
    )
    assert count == 3
    samples = DataFolder("x", output).samples("vqa", reader="vqav2", source="vqav2", split="test")
    assert [s.question for s in samples] == ["What color?", "How many?", "Is it red?"]
    assert samples[0].references == ("red",) * 10
    assert samples[1].facets["answer_type"] == "number"
    assert Image.open(samples[2].image_path).getpixel((0, 0)) == (200, 0, 0)
    names = sorted(path.name for path in (output / "coco" / "val2014").iterdir())
    assert names == ["COCO_val2014_000000000004.png", "COCO_val2014_000000000005.png"]
    again = import_dataset(
        str(source), output, kind="vqav2", split="x", part="val", reporter=QuietReporter()
    )
    assert again == 3


def test_imported_questions_are_kept_out_of_training_on_the_same_images(tmp_path: Path) -> None:
    rows = {
        "image": [picture(10)], "image_id": [4], "question": ["What?"], "question_id": [40],
        "answers": [answers("red")], "multiple_choice_answer": ["red"], "answer_type": ["other"],
        "question_type": ["what"],
    }  # fmt: skip
    source = saved(tmp_path / "source", rows)
    for number in (4, 5):  # in 2017 both are training images
        image = tmp_path / "coco" / "train2017" / f"{number:012}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        picture(10).save(image)
    captions = tmp_path / "coco" / "captions_train2017.json"
    captions.write_text(
        json.dumps(
            {
                "images": [{"id": n, "file_name": f"{n:012}.jpg"} for n in (4, 5)],
                "annotations": [{"id": n, "image_id": n, "caption": "a dog"} for n in (4, 5)],
            }
        )
    )
    import_dataset(
        str(source), tmp_path, kind="vqav2", split="x", part="val", reporter=QuietReporter()
    )
    folder = DataFolder("x", tmp_path)
    train = folder.samples("captioning", reader="coco-captions", source="coco2017", split="train")
    assert {sample.image_id for sample in train} == {5}


def test_captions_are_read_back_as_they_were(tmp_path: Path) -> None:
    source = saved(
        tmp_path / "source",
        {"image": [picture(1)], "id": [9], "answer": [["a dark square", "nearly black"]]},
    )
    import_dataset(
        str(source), tmp_path, kind="captions", split="x", part="val", reporter=QuietReporter()
    )
    (sample,) = DataFolder("x", tmp_path).samples(
        "captioning", reader="coco-captions", source="captions", split="test"
    )
    assert (sample.image_id, sample.references) == (9, ("a dark square", "nearly black"))
    written = tmp_path / "coco" / "annotations" / "captions_val2017.json"
    written.write_text("{}")
    with pytest.raises(DataError, match=r"captions_val2017\.json is there already"):
        import_dataset(
            str(source), tmp_path, kind="captions", split="x", part="val", reporter=QuietReporter()
        )
    assert written.read_text() == "{}"


def test_a_streamed_set_is_written_as_the_whole_one_is(tmp_path: Path) -> None:
    rows = {"image": [picture(1), picture(2)], "id": [9, 8], "answer": [["a"], ["b", "c"]]}
    source = saved(tmp_path / "source", rows)
    for name, streaming in (("whole", False), ("streamed", True)):
        count = import_dataset(
            str(source), tmp_path / name, kind="captions", split="x", part="val",
            streaming=streaming, reporter=QuietReporter(),
        )  # fmt: skip
        assert count == 2
    written = [
        (tmp_path / name / "coco" / "annotations" / "captions_val2017.json").read_text()
        for name in ("whole", "streamed")
    ]
    assert written[0] == written[1]


def test_missing_columns_and_data_sets_are_named(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", {"image": [picture(1)], "id": [9]})
    with pytest.raises(DataError, match="no column 'answer' for captions; it has image, id"):
        import_dataset(
            str(source), tmp_path, kind="captions", split="x", part="val", reporter=QuietReporter()
        )
    with pytest.raises(DataError, match=r"nobody/nothing.*cannot be read"):
        import_dataset(
            "nobody/nothing", tmp_path, kind="vqav2", split="x", part="val",
            reporter=QuietReporter(),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ({"id": [9], "answer": [["another"]]}, r"000000000009\.png: is there and is another image"),
        ({"id": ["COCO_9"], "answer": [["a"]]}, "row 0: 'id' is 'COCO_9'"),
    ],
)
def test_an_import_that_would_mix_images_up_is_refused(
    tmp_path: Path, rows: dict[str, list[object]], fault: str
) -> None:
    first = saved(tmp_path / "one", {"image": [picture(1)], "id": [9], "answer": [["dark"]]})
    second = saved(tmp_path / "two", {"image": [picture(200)], **rows})
    import_dataset(
        str(first), tmp_path, kind="captions", split="x", part="val", reporter=QuietReporter()
    )
    with pytest.raises(DataError, match=fault):
        import_dataset(
            str(second), tmp_path, kind="captions", split="x", part="val", reporter=QuietReporter()
        )


def test_a_caption_that_is_no_list_is_one_caption(tmp_path: Path) -> None:
    source = saved(tmp_path / "one", {"image": [picture(1)], "id": [9], "answer": ["a dark one"]})
    import_dataset(
        str(source), tmp_path, kind="captions", split="x", part="val", reporter=QuietReporter()
    )
    (sample,) = DataFolder("x", tmp_path).samples(
        "captioning", reader="coco-captions", source="captions", split="test"
    )
    assert sample.references == ("a dark one",)


def test_a_transparent_colour_is_the_same_image_again(tmp_path: Path) -> None:
    see_through = picture(1)
    see_through.info["transparency"] = (1, 0, 0)
    rows = {"image": [see_through, see_through], "id": [9, 9], "answer": [["a"], ["b"]]}
    source = saved(tmp_path / "one", rows)
    count = import_dataset(
        str(source), tmp_path, kind="captions", split="x", part="val", reporter=QuietReporter()
    )
    assert count == 2
