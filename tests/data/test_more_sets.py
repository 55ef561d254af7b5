"""OK-VQA, TextVQA, VizWiz, GQA, POPE, NoCaps and Flickr30k, written in their official layouts."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from encoder_bench.base.errors import DataError, EncoderBenchError
from encoder_bench.base.recipes import load_task
from encoder_bench.cli.app import app
from encoder_bench.data.folder import DataFolder
from encoder_bench.data.readers import readers
from encoder_bench.data.sample import Sample, Split

TEN = [{"answer": "a dog"}] * 7 + [{"answer": "cat"}] * 3


def put(root: Path, name: str, content: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")


def picture(root: Path, name: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = zlib.crc32(name.encode()) % 2**24  # no two files are equal
    Image.new("RGB", (8, 8), f"#{colour:06x}").save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    picture(tmp_path, "coco/val2014/COCO_val2014_000000000042.jpg")
    question = {"question_id": 1, "image_id": 42, "question": "What is it?"}
    put(tmp_path, "okvqa/OpenEnded_mscoco_val2014_questions.json", {"questions": [question]})
    annotation = {"question_id": 1, "image_id": 42, "answers": TEN, "question_type": "four"}
    put(tmp_path, "okvqa/mscoco_val2014_annotations.json", {"annotations": [annotation]})
    picture(tmp_path, "textvqa/train_images/abc.jpg")
    row = {"question_id": 5, "image_id": "abc", "question": "Says?", "answers": ["stop"] * 10}
    put(tmp_path, "textvqa/TextVQA_0.5.1_val.json", {"data": [row]})
    picture(tmp_path, "vizwiz/val/VizWiz_val_00000000.jpg")
    row = {"image": "VizWiz_val_00000000.jpg", "question": "Colour?", "answers": TEN,
           "answer_type": "other"}  # fmt: skip
    put(tmp_path, "vizwiz/Annotations/val.json", [row])
    picture(tmp_path, "gqa/images/n1.jpg")
    row = {
        "imageId": "n1",
        "question": "Is it?",
        "answer": "yes",
        "types": {"structural": "verify"},
    }
    put(tmp_path, "gqa/testdev_balanced_questions.json", {"q9": row})
    for setting in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": number, "image": "COCO_val2014_000000000042.jpg",
             "text": "Is there a dog?", "label": label}
            for number, label in ((1, "yes"), (2, "no"))
        ]  # fmt: skip
        put(tmp_path, f"pope/coco_pope_{setting}.json", "\n".join(map(json.dumps, lines)) + "\n")
    picture(tmp_path, "nocaps/images/x.jpg")
    put(tmp_path, "nocaps/nocaps_val_4500_captions.json", {
        "images": [{"id": 3, "file_name": "x.jpg", "domain": "near-domain"}],
        "annotations": [{"id": i, "image_id": 3, "caption": f"caption {i}"} for i in range(10)],
    })  # fmt: skip
    picture(tmp_path, "flickr30k/images/7.jpg")
    put(tmp_path, "flickr30k/dataset_flickr30k.json", {"images": [
        {"filename": "7.jpg", "split": "test", "sentences": [{"raw": "a man"}, {"raw": "a boy"}]},
        {"filename": "8.jpg", "split": "train", "sentences": [{"raw": "no"}]},
    ]})  # fmt: skip
    return tmp_path


def read(root: Path, task: str, split: Split = "test") -> list[Sample]:
    recipe = load_task(task)
    return DataFolder("x", root).samples(
        task, reader=recipe.reader, source=recipe.source, split=split
    )


@pytest.mark.parametrize(
    ("task", "sample_id", "target", "facets"),
    [
        ("okvqa", "okvqa/1", "a dog", {"question_type": "four"}),
        ("textvqa", "textvqa/5", "stop", {}),
        ("vizwiz", "vizwiz/0", "a dog", {"answer_type": "other"}),
        ("gqa", "gqa/q9", "yes", {"question_type": "verify"}),
        ("nocaps", "nocaps/x.jpg", "caption 0", {"domain": "near-domain"}),
        ("flickr30k", "flickr30k/7.jpg", "a man", {}),
    ],
)
def test_a_set_is_read_in_its_own_layout(
    root: Path, task: str, sample_id: str, target: str, facets: dict[str, str]
) -> None:
    (sample,) = read(root, task)
    assert (sample.sample_id, sample.target, dict(sample.facets)) == (sample_id, target, facets)
    assert sample.image_path.is_file()
    assert len(sample.references) == {"gqa": 1, "flickr30k": 2}.get(task, 10)


def test_an_image_of_coco_is_the_same_image_in_every_set(root: Path) -> None:
    ids = {sample.image_id for task in ("okvqa", "pope") for sample in read(root, task)}
    assert ids == {42}


def test_pope_has_three_settings_of_balanced_answers(root: Path) -> None:
    samples = read(root, "pope")
    assert len(samples) == 6
    assert len({sample.sample_id for sample in samples}) == 6
    assert [sample.facets["setting"] for sample in samples[::2]] == [
        "random",
        "popular",
        "adversarial",
    ]
    assert {sample.references for sample in samples} == {("Yes.",), ("No.",)}


def test_a_check_of_sets_for_testing_only_finds_no_problem(root: Path) -> None:
    checked = CliRunner().invoke(app, ["data", "check", str(root), "--tasks", "pope,flickr30k"])
    assert checked.exit_code == 0, checked.output
    assert re.search(r"pope +train +.*POPE has no train split", checked.stdout)
    assert re.search(r"pope +test +6 samples", checked.stdout)
    assert re.search(r"flickr30k +train +.*for testing only", checked.stdout)


@pytest.mark.parametrize(
    ("task", "file", "content", "message"),
    [
        ("okvqa", "okvqa/mscoco_val2014_annotations.json", {"annotations": [{}]}, "question_id"),
        ("textvqa", "textvqa/TextVQA_0.5.1_val.json", {"data": [{}]}, "row 0: no 'image_id'"),
        (
            "vizwiz",
            "vizwiz/Annotations/val.json",
            [{"image": "no.jpg", "question": "?", "answers": TEN}],
            r"row 0: no image file for vizwiz/val/no\.jpg",
        ),
        (
            "vizwiz",
            "vizwiz/Annotations/val.json",
            [{"image": "no.jpg", "question": "?"}],
            r"val\.json: row 0: no 'answers'",
        ),
        (
            "gqa",
            "gqa/testdev_balanced_questions.json",
            {"q": 1},
            "row q: Expected `object`",
        ),
        (
            "pope",
            "pope/coco_pope_random.json",
            '{"image": "x.jpg", "label": "maybe", "text": "?"}',
            "'label' is 'maybe'",
        ),
        ("pope", "pope/coco_pope_random.json", "{", r"random\.json:1: not valid JSON"),
        ("nocaps", "nocaps/nocaps_val_4500_captions.json", {"images": []}, "empty"),
        ("flickr30k", "flickr30k/dataset_flickr30k.json", {}, "no 'images'"),
    ],
)
def test_what_is_wrong_is_named(
    root: Path, task: str, file: str, content: Any, message: str
) -> None:
    put(root, file, content)
    with pytest.raises(DataError, match=message):
        read(root, task)


@pytest.mark.parametrize("task", ["pope", "nocaps", "flickr30k"])
def test_what_has_no_training_split_says_so(root: Path, task: str) -> None:
    with pytest.raises(DataError, match="train"):
        read(root, task, "train")


def test_a_missing_set_names_its_file(tmp_path: Path) -> None:
    for task in ("okvqa", "textvqa", "vizwiz", "gqa", "pope", "nocaps", "flickr30k"):
        with pytest.raises(DataError, match=r"\.json"):
            read(tmp_path, task)


VCR = "movieclips_x/abc@1.jpg"


@pytest.mark.parametrize("place", ["vcr1images", "vcr/vcr1images", ""])
def test_gvtbench_on_vcr_is_read_wherever_its_images_are(tmp_path: Path, place: str) -> None:
    picture(tmp_path, f"{place}/{VCR}" if place else VCR)
    row = {"image_id": VCR, "text_in": "Does ties exist in the image?", "text_out": "Yes.",
           "n_obj_exist": 10}  # fmt: skip
    put(tmp_path, "gvtbench/vcr_mci.json", [row])
    (sample,) = read(tmp_path, "vcr_mci")
    assert (sample.image_id, sample.facets["crowding"]) == (VCR, "10-19 objects")
    assert sample.image_path == (tmp_path / place / VCR).resolve()
    row = {"image_id": VCR, "text_in": "How many ties?", "text_out": "3", "n_obj_exist": 10}
    put(tmp_path, "vcr_oc.json", [row])
    assert read(tmp_path, "vcr_oc")[0].target == "3"


def test_test_dev_has_questions_without_answers_and_leaves_a_file_to_upload(
    tmp_path: Path,
) -> None:
    from encoder_bench.base.progress import QuietReporter
    from encoder_bench.tasks.evaluate import evaluate
    from encoder_bench.tasks.predictions import Reply
    from encoder_bench.tasks.task import TaskSamples

    class Model:
        def answer(
            self, images: Any, prompts: Any, decoding: Any, candidates: Any
        ) -> list[list[Reply]]:
            return [[Reply("red ") for _ in group] for group in prompts]

    picture(tmp_path, "coco/test2015/COCO_test2015_000000000001.jpg")
    question = {"question_id": 1000, "image_id": 1, "question": "What colour?"}
    put(
        tmp_path, "vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": [question]}
    )
    samples = read(tmp_path, "vqa_testdev")
    assert [(s.sample_id, s.references) for s in samples] == [("vqa_testdev/1000", ())]
    recipe = load_task("vqa_testdev")
    task = TaskSamples("vqa_testdev", recipe, samples)
    scores = evaluate(
        Model(), [task], tmp_path / "out", batch_images=2, seed=0, reporter=QuietReporter()
    )["vqa_testdev"]
    score = scores.metrics["vqa_accuracy"]
    assert score.value is None
    assert "public" in str(score.reason)
    exported = json.loads((tmp_path / "out" / "vqa_testdev.export.json").read_text())
    assert exported == [{"question_id": 1000, "answer": "red"}]


def test_karpathys_split_and_val2017_are_told_apart(tmp_path: Path) -> None:
    for image in (1, 2):
        picture(tmp_path, f"coco/val2017/{image:012}.jpg")
    put(tmp_path, "coco/dataset_coco.json", {"images": [
        {"cocoid": 1, "split": "test", "sentences": [{"raw": "karpathy"}]},
        {"cocoid": 2, "split": "val", "sentences": [{"raw": "other"}]},
    ]})  # fmt: skip
    put(tmp_path, "coco/annotations/captions_val2017.json", {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"id": i, "image_id": i, "caption": f"official {i}"} for i in (1, 2)],
    })  # fmt: skip
    assert [s.target for s in read(tmp_path, "karpathy")] == ["karpathy"]
    assert [s.target for s in read(tmp_path, "captioning")] == ["karpathy"]
    assert [s.target for s in read(tmp_path, "coco2017")] == ["official 1", "official 2"]
    with pytest.raises(DataError, match="no 'flickr'"):
        DataFolder("x", tmp_path).samples(
            "c", reader="coco-captions", source="flickr", split="test"
        )


def coco_captions(root: Path, *images: int) -> None:
    """Training captions on COCO images, beside whatever test sets the folder has."""
    for image in images:
        picture(root, f"coco/train2017/{image:012}.jpg")
    put(root, "coco/annotations/captions_train2017.json", {
        "images": [{"id": image, "file_name": f"{image:012}.jpg"} for image in images],
        "annotations": [{"id": i, "image_id": i, "caption": f"caption {i}"} for i in images],
    })  # fmt: skip


def trained_images(root: Path) -> set[int | str]:
    samples = DataFolder("x", root).samples(
        "captioning", reader="coco-captions", source="captions", split="train"
    )
    return {sample.image_id for sample in samples}


@pytest.mark.parametrize("test_set", ["okvqa", "pope"])
@pytest.mark.parametrize("pictures_there", [True, False])
def test_test_images_of_every_reader_are_kept_out_of_training(
    root: Path, test_set: str, pictures_there: bool
) -> None:
    for other in {"okvqa", "pope"} - {test_set}:
        shutil.rmtree(root / other)
    coco_captions(root, 42, 43)
    if not pictures_there:
        shutil.rmtree(root / "coco" / "val2014")
    assert trained_images(root) == {43}


PLUG_IN = """
import json
from encoder_bench.data.readers import Reader
from encoder_bench.data.sample import Sample


def read(files, task, source, split):
    path = files.require("signs", "questions.json")
    return [
        Sample(f"{task}/{n}", task, *files.image(n, str(path)), "Stop?", ("yes",), "yes")
        for n in json.loads(path.read_text())
    ]


READER = Reader("signs", read, {"signs": ("signs/questions.json",)})
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    place = tmp_path / "site"
    put(place, "signs_reader.py", PLUG_IN)
    put(place, "signs-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: signs\nVersion: 1\n")
    entry = "[encoder_bench.readers]\nsigns = signs_reader:READER\n"
    put(place, "signs-1.dist-info/entry_points.txt", entry)
    monkeypatch.syspath_prepend(str(place))
    yield
    sys.modules.pop("signs_reader", None)


@pytest.mark.usefixtures("plug_in")
def test_a_reader_of_another_package_is_found_and_its_test_images_kept_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    coco_captions(root, 1, 2, 3)
    assert trained_images(root) == {1, 2, 3}
    before = DataFolder("x", root).fingerprint()
    put(root, "signs/questions.json", [2])
    assert trained_images(root) == {1, 3}
    assert DataFolder("x", root).fingerprint() != before
    (sample,) = DataFolder("x", root).samples("s", reader="signs", source="signs", split="test")
    assert sample.image_path.name == "000000000002.jpg"
    with pytest.raises(DataError, match="reader 'signs' has no 'roads'; choose one of signs"):
        DataFolder("x", root).samples("s", reader="signs", source="roads", split="test")


@pytest.mark.usefixtures("plug_in")
@pytest.mark.parametrize("broken", ["READER = print", "import nowhere_at_all", ""])
def test_a_broken_reader_of_another_package_is_named(tmp_path: Path, broken: str) -> None:
    put(tmp_path / "site", "signs_reader.py", broken)
    with pytest.raises(
        EncoderBenchError, match=r"entry point signs \(signs_reader:READER\): (not|cannot)"
    ):
        readers()
