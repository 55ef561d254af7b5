"""Questions made from an instances file: true, balanced, counted from zero, read back."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import inflect
import pytest
from PIL import Image
from typer.testing import CliRunner

from encoder_bench.base.errors import DataError
from encoder_bench.cli.app import app
from encoder_bench.data.folder import DataFolder
from encoder_bench.data.lint import lint_samples
from encoder_bench.data.questions import write_questions
from encoder_bench.data.readers import gvtbench
from encoder_bench.data.readers.balanced import balanced_counts
from encoder_bench.data.readers.captions import read_instances
from encoder_bench.data.readers.gvtbench import _PLURALS, plural

NAMES = ("person", "wine glass", "sheep", "bus", "knife", "mouse")
COCO = """person:people|bicycle:bicycles|car:cars|motorcycle:motorcycles
airplane:airplanes|bus:buses|train:trains|truck:trucks|boat:boats|traffic light:traffic lights
fire hydrant:fire hydrants|stop sign:stop signs|parking meter:parking meters|bench:benches
bird:birds|cat:cats|dog:dogs|horse:horses|sheep:sheep|cow:cows|elephant:elephants|bear:bears
zebra:zebras|giraffe:giraffes|backpack:backpacks|umbrella:umbrellas|handbag:handbags|tie:ties
suitcase:suitcases|frisbee:frisbees|skis:skis|snowboard:snowboards|sports ball:sports balls
kite:kites|baseball bat:baseball bats|baseball glove:baseball gloves|skateboard:skateboards
surfboard:surfboards|tennis racket:tennis rackets|bottle:bottles|wine glass:wine glasses
cup:cups|fork:forks|knife:knives|spoon:spoons|bowl:bowls|banana:bananas|apple:apples
sandwich:sandwiches|orange:oranges|broccoli:broccoli|carrot:carrots|hot dog:hot dogs
pizza:pizzas|donut:donuts|cake:cakes|chair:chairs|couch:couches|potted plant:potted plants
bed:beds|dining table:dining tables|toilet:toilets|tv:tvs|laptop:laptops|mouse:mice
remote:remotes|keyboard:keyboards|cell phone:cell phones|microwave:microwaves|oven:ovens
toaster:toasters|sink:sinks|refrigerator:refrigerators|book:books|clock:clocks|vase:vases
scissors:scissors|teddy bear:teddy bears|hair drier:hair driers|toothbrush:toothbrushes"""


def instances(path: Path, images: int = 400, **row: object) -> Path:
    """Skewed as COCO is: one is the commonest count, and people are everywhere."""
    rng = random.Random(1)
    annotations = [
        {"image_id": image, "category_id": category, "iscrowd": int(image % 50 == 0)}
        for image in range(1, images + 1)
        for category in range(len(NAMES))
        for _ in range(rng.choice([0, 0, 1, 1, 1, 2, 3, 4, 6]))
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i:012}.jpg", **row} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    write_questions(instances(tmp_path / "instances.json"), tmp_path, questions=300)
    (tmp_path / "images").mkdir()
    (tmp_path / "coco").mkdir()
    for image in range(1, 401):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{image:012}.jpg")
    return tmp_path


@pytest.mark.parametrize("task", ["oc", "mci"])
def test_answers_are_true_and_each_is_right_equally_often(made: Path, task: str) -> None:
    samples = DataFolder("x", made).samples(
        task, reader="gvtbench", source=f"coco_{task}", split="test"
    )
    assert len(samples) >= 300
    truth = read_instances(made / "instances.json")
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        by_question[sample.question][sample.target] += 1
        assert sample.image_id not in truth.crowded
        assert isinstance(sample.image_id, int)
        counts = truth.counts[sample.image_id]
        if task == "oc":
            name = next(n for n in NAMES if f"many {plural(n)} are" in sample.question)
            assert counts[name] == int(sample.target)
        else:
            name = next(n for n in NAMES if f"Does {n} exist" in sample.question)
            assert (counts[name] > 0) == (sample.target == "Yes.")
    for answers in by_question.values():
        assert len(set(answers.values())) == 1
    if task == "oc":
        assert {"0", "1", "2", "3"} <= {sample.target for sample in samples}
    found = {finding.kind for finding in lint_samples(task, samples)}
    assert not found & {"skew", "majority-leak", "text-leak", "conflict"}


@pytest.mark.parametrize("task", ["oc", "mci"])
def test_training_questions_of_a_balanced_source_do_not_tell_their_answers(
    made: Path, task: str
) -> None:
    """Nor where images of test sets are left out, here the first hundred."""
    tested: set[int | str] = set()
    for path in (made / "gvtbench").iterdir():
        rows = [row for row in json.loads(path.read_text()) if row["image_id"] <= 100]
        path.write_text(json.dumps(rows))
        tested.update(row["image_id"] for row in rows)
    source = instances(made / "coco" / "instances_train2017.json")
    content = json.loads(source.read_text())
    content["annotations"] = [  # most images lack most categories, as in COCO
        row for row in content["annotations"] if (row["image_id"] + row["category_id"]) % 3 == 0
    ]
    source.write_text(json.dumps(content))
    samples = DataFolder("x", made).samples(
        task, reader="gvtbench", source=f"coco_{task}_balanced", split="train"
    )
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_image: dict[int | str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        by_question[sample.question][sample.target] += 1
        by_image[sample.image_id][sample.target] += 1
    assert len(by_question) == len(NAMES)
    assert all(len(set(answers.values())) == 1 for answers in by_question.values())
    assert len({sample.sample_id for sample in samples}) == len(samples)
    assert len(tested) > 50
    assert not tested & by_image.keys()
    if task == "mci":  # an image with much in it is hardly more often "yes" than an empty one
        apart = [abs(answers["Yes."] - answers["No."]) for answers in by_image.values()]
        assert sum(apart) < 0.15 * len(samples)  # drawn at random: 0.25


def test_balanced_training_leaves_copies_of_test_photos_out_before_it_chooses(
    tmp_path: Path,
) -> None:
    cups = range(1, 21)
    content = {
        "images": [{"id": n, "file_name": f"{'cup' if n in cups else 'dog'}-{n}.png"}
                   for n in range(1, 41)],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}],
        "annotations": [{"image_id": n, "category_id": 1 if n in cups else 2}
                        for n in range(1, 41)],
    }  # fmt: skip
    train, own = tmp_path / "coco" / "train2017", tmp_path / "photos"
    for folder in (train, own, tmp_path / "coco" / "annotations", tmp_path / "gvtbench"):
        folder.mkdir(parents=True)
    for image in content["images"]:
        Image.new("RGB", (8, 8), (int(image["id"]), 0, 0)).save(train / image["file_name"])
    file = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(content))
    copied = [f"cup-{n}.png" for n in range(1, 16)]
    for name in copied:
        shutil.copy(train / name, own / name)
    row = {"text_in": "Does cup exist in the image?", "text_out": "Yes.", "n_obj_exist": 1}
    asked = [row | {"image_id": f"photos/{name}"} for name in copied]
    (tmp_path / "gvtbench" / "coco_mci.json").write_text(json.dumps(asked))
    samples = DataFolder("x", tmp_path).samples(
        "mci", reader="gvtbench", source="coco_mci_balanced", split="train"
    )
    answers = Counter((sample.question, sample.target) for sample in samples)
    assert not {s.image_path.name for s in samples} & {*copied}
    for name in ("cup", "dog"):
        question = f"Does {name} exist in the image?"
        assert answers[question, "Yes."] == answers[question, "No."] == 5


def test_counting_questions_leave_room_for_higher_counts(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = instances(made / "coco" / "instances_train2017.json")
    content = json.loads(source.read_text())
    counts = [0] * 60 + [1] * 30 + [2] * 6 + [3] * 3 + [4]
    content["annotations"] = [
        {"image_id": image, "category_id": category, "iscrowd": 0}
        for image in range(1, 401)
        for category, start in enumerate(range(0, 36, 6))
        for _ in range(counts[(image + start) % 100])
    ]
    source.write_text(json.dumps(content))
    shutil.rmtree(made / "gvtbench")  # nothing is tested, so that no image is left out

    def highest() -> tuple[int, int]:
        samples = DataFolder("x", made).samples(
            "oc", reader="gvtbench", source="coco_oc_balanced", split="train"
        )
        return len(samples), max(int(sample.target) for sample in samples)

    every = highest()
    monkeypatch.setattr(gvtbench, "_COUNTS_PER_CATEGORY", 10)
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(made / "cache"))  # which knows files, no patches
    few = highest()
    assert few[0] >= 10 * len(NAMES)
    assert few[0] < every[0]
    assert few[1] > every[1]


def test_each_category_has_a_number_of_images_of_its_own_for_each_count(tmp_path: Path) -> None:
    """So that rare ones are asked for too, and no more is asked than wanted."""
    counts = {"cat": [0, 1, 2, 3] * 20, "dog": [0] * 77 + [1, 1, 2], "cow": [0] * 80}
    rows = [
        {"image_id": image, "category_id": category, "iscrowd": 0}
        for category, own in enumerate(counts.values())
        for image, count in enumerate(own, 1)
        for _ in range(count)
    ]
    rows += [{"image_id": image, "category_id": 3, "iscrowd": 0} for image in range(1, 81)]
    source = tmp_path / "instances.json"
    content = {
        "images": [{"id": image, "file_name": f"{image:012}.jpg"} for image in range(1, 81)],
        "categories": [{"id": i, "name": name} for i, name in enumerate([*counts, "sky"])],
        "annotations": rows,
    }
    source.write_text(json.dumps(content))

    def asked(wanted: float) -> dict[str, Counter[int]]:
        found: dict[str, Counter[int]] = defaultdict(Counter)
        for image, name, count in balanced_counts(read_instances(source), wanted, random.Random(0)):
            assert counts[name][image - 1] == count
            found[name][count] += 1
        return found

    cats = dict.fromkeys(range(4), 20)
    assert asked(math.inf) == {"cat": cats, "dog": {0: 2, 1: 2}}
    assert asked(20) == {"cat": dict.fromkeys(range(4), 4), "dog": {0: 2, 1: 2}}
    assert asked(6) == {"cat": dict.fromkeys(range(4), 1), "dog": {0: 1, 1: 1, 2: 1}}


def test_the_same_seed_makes_the_same_questions(tmp_path: Path) -> None:
    source = instances(tmp_path / "instances.json")
    texts = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_questions(source, tmp_path / folder, questions=100, seed=seed)
        texts.append((tmp_path / folder / "gvtbench" / "coco_oc.json").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_other_questions_are_not_replaced(made: Path) -> None:
    published = made / "gvtbench" / "coco_mci.json"
    published.write_text("[]")
    (made / "gvtbench" / "coco_oc.json").unlink()
    with pytest.raises(DataError, match=r"coco_mci\.json is there already.*another folder"):
        write_questions(made / "instances.json", made, questions=300)
    assert [path.name for path in (made / "gvtbench").iterdir()] == ["coco_mci.json"]
    assert published.read_text() == "[]"
    published.unlink()
    for _ in range(2):  # the same ones may be written again
        write_questions(made / "instances.json", made, questions=300)


def test_files_without_coco_names_need_their_folder_and_federated_ones_are_refused(
    tmp_path: Path,
) -> None:
    source = instances(tmp_path / "instances.json")
    source.write_text(source.read_text().replace(".jpg", "-x.jpg"))
    with pytest.raises(DataError, match="--image-folder"):
        write_questions(source, tmp_path, questions=10)
    made = write_questions(source, tmp_path, questions=10, images="images")
    assert str(made["coco_mci"].rows[0]["image_id"]).startswith("images/0")
    federated = instances(tmp_path / "lvis.json", neg_category_ids=[])
    with pytest.raises(DataError, match="federated"):
        write_questions(federated, tmp_path, questions=10)


def test_plurals_of_all_categories_of_coco() -> None:
    """Word for word, because training questions hold them: another one would change scores."""
    pairs = dict(pair.split(":") for line in COCO.split("\n") for pair in line.split("|"))
    assert len(pairs) == 80
    assert {name: plural(name) for name in pairs} == pairs
    assert set(pairs) <= set(_PLURALS) | {"skis", "broccoli"}  # for which inflect is not imported
    made = inflect.engine()
    assert {name: made.plural_noun(name) for name in _PLURALS} == {
        name: plural(name) for name in _PLURALS
    }
    scenes = {"circle": "circles", "cross": "crosses", "frame": "frames", "ring": "rings",
              "square": "squares", "star": "stars", "triangle": "triangles"}  # fmt: skip
    assert {name: plural(name) for name in scenes} == scenes


def test_the_command_says_what_a_blind_answer_scores(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "coco" / "annotations" / "instances_val2017.json"
    arguments = ["data", "questions", str(source), str(tmp_path), "--questions", "200"]
    lines = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout.splitlines()
    assert len(lines) == 2
    assert "the majority by question 50.0%" in lines[1]
