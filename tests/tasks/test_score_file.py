"""`encoder-bench score`: files in every form, variants side by side, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from encoder_bench.base.errors import DataError, MissingDependencyError
from encoder_bench.base.recipes import load_task
from encoder_bench.cli.app import app
from encoder_bench.data.sample import Sample
from encoder_bench.metrics import java, spice
from encoder_bench.tasks.score_file import score_predictions

SMALL = "scenes:3:10:2:20"
COUNTS = [
    Sample(f"oc/{i}", "oc", i, Path("x"), "How many?", (str(truth),), str(truth))
    for i, truth in enumerate((1, 2, 9))
]


@pytest.fixture
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR and SPICE have tests of their own; here they would only take long."""

    def absent(*arguments: object, **limits: object) -> None:
        raise MissingDependencyError("no Java in this test")

    monkeypatch.setattr(java, "meteor_counts", absent)
    monkeypatch.setattr(spice, "check_installed", absent)


def write(path: Path, *texts: str) -> Path:
    path.write_text("\n".join(json.dumps({"id": i, "answer": t}) for i, t in enumerate(texts)))
    return path


def test_variants_are_scored_side_by_side_and_show_where_they_disagree(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", "one", "I see two of 4", "nigh")
    found = score_predictions("oc", load_task("oc"), COUNTS, file)
    assert found.scores["counting_accuracy"].value == pytest.approx(100 / 3)
    assert found.variants() == ["counting_accuracy_gvt"]
    differing = {entry.sample_id for entry in found.differing("counting_accuracy_gvt")}
    gvt = found.scores["counting_accuracy_gvt"].value
    assert gvt is not None
    assert len(differing) == round(abs(gvt - 100 / 3) * 3 / 100)
    assert found.parse_failures == 2
    assert found.blind["constant"].value == pytest.approx(100 / 3)
    assert found.lift == pytest.approx(0.0)


def test_missing_answers_are_refused_or_wrong_but_never_dropped_silently(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", "1", "2")
    with pytest.raises(DataError, match="no answer to 1 of 3 samples, the first oc/2"):
        score_predictions("oc", load_task("oc"), COUNTS, file)
    found = score_predictions("oc", load_task("oc"), COUNTS, file, missing="wrong")
    assert found.scores["counting_accuracy"].value == pytest.approx(200 / 3)
    assert found.odd["missing"] == ["oc/2"]
    found = score_predictions("oc", load_task("oc"), COUNTS, file, missing="leave-out")
    score = found.scores["counting_accuracy"]
    assert (score.value, score.samples, found.total) == (100.0, 2, 3)
    stray = tmp_path / "stray.jsonl"
    stray.write_text('{"id": "other/1", "answer": "x"}')
    with pytest.raises(DataError, match=r"no id of it .* is one of task 'oc'"):
        score_predictions("oc", load_task("oc"), COUNTS, stray)


def test_the_command_prints_scores_and_writes_every_sample(tmp_path: Path) -> None:
    from encoder_bench.data.folder import open_data

    recipe = load_task("mci")
    samples = open_data(SMALL).samples(
        "mci", reader=recipe.reader, source=recipe.source, split="test"
    )
    file = tmp_path / "p.json"
    file.write_text(
        json.dumps([{"id": s.sample_id, "answer": f"{s.target} or so"} for s in samples])
    )
    output = tmp_path / "samples.csv"
    arguments = [
        "score",
        "mci",
        "--predictions",
        str(file),
        "--data",
        SMALL,
        "--output",
        str(output),
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "yesno_accuracy_gvt" in result.stdout
    assert len(list(csv.DictReader(output.open()))) == len(samples)
    shown = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert shown["scores"]["yesno_accuracy"]["value"] == 100.0
    assert shown["parse_failures"] == 0
    crowding = shown["breakdown"]["yesno_f1"]["crowding"]
    assert sum(score["samples"] for score in crowding.values()) == len(samples)


def test_doubled_answers_are_refused_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"id": i, "answer": "1"} for i in (0, 1, 2, 1, 2)]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        DataError, match=r"second answer to 2 samples, the first 1 \(.*:2 and .*:4\)"
    ):
        score_predictions("oc", load_task("oc"), COUNTS, file)


def test_odd_answers_are_named_and_counted_and_scored(tmp_path: Path) -> None:
    answers = [1, None, "", "\u4e5d \ud800", "9\x00", "1" + " dog" * 400_000, ["1"], "1"]
    samples = [
        Sample(f"oc/{i}", "oc", i, Path("x"), f"How many {i}?", ("1",), "1")
        for i in range(len(answers))
    ]
    file = tmp_path / "a.json"
    rows = [{"id": i, "answer": answer} for i, answer in enumerate(answers)]
    file.write_text(json.dumps([*rows, {"id": 99, "answer": "1"}]))
    found = score_predictions("oc", load_task("oc"), samples, file)
    counts = {kind: len(names) for kind, names in found.odd.items()}
    assert counts == {
        "not text": 2,
        "empty": 2,
        "another script": 1,
        "control characters": 2,
        "long": 1,
        "to no sample": 1,
    }
    assert "99" in found.odd["to no sample"][0]
    assert "1,600,001 characters" in found.odd["long"][0]
    assert found.scores["counting_accuracy"].samples == len(answers)
    assert found.scores["counting_accuracy"].value == pytest.approx(100 * 4 / 8)
    assert found.parse_failures == 3


@pytest.mark.usefixtures("without_java")
@pytest.mark.parametrize("task", ["vqa", "captioning", "oc", "mci"])
def test_megabytes_and_other_scripts_break_no_metric(tmp_path: Path, task: str) -> None:
    truths = {"vqa": ("red",) * 10, "captioning": ("a red dog",), "oc": ("2",), "mci": ("No.",)}
    samples = [
        Sample(
            f"{task}/{i}",
            task,
            i,
            Path("x"),
            "" if task == "captioning" else "q?",
            truths[task],
            "",
        )
        for i in range(4)
    ]
    texts = ["red " * 50_000, "\u0000\u202e", "\u72ac", ""]
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"image_id": i, "answer": text} for i, text in enumerate(texts)]))
    if task != "captioning":
        rows = [{"id": i, "answer": text} for i, text in enumerate(texts)]
        file.write_text(json.dumps(rows))
    recipe = load_task(task)
    found = score_predictions(task, recipe, samples, file)
    assert found.scores[recipe.primary].samples == 4
    assert found.scores[recipe.primary].value is not None


QUESTIONS = [
    Sample(f"mci/{i}", "mci", image, Path("x"), question, ("Yes.",), "Yes.")
    for i, (image, question) in enumerate(((42, "A?"), (42, "B?"), (7, "A?")))
]


@pytest.mark.parametrize(
    "rows",
    [
        [{"image_id": 42, "question": "B?", "answer": "no"},
         {"image_id": "COCO_val2014_000000000007.jpg", "question": "A?", "answer": "yes"},
         {"image_id": "000042", "question": "A?", "answer": "yes"}],
        [{"image_id": 42, "pred": "yes"}, {"image_id": 42.0, "pred": "no"},
         {"image_id": "7", "pred": "yes"}],
    ],
)  # fmt: skip
def test_rows_are_matched_by_image_and_question_or_in_order(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(rows))
    found = score_predictions("mci", load_task("mci"), QUESTIONS, file)
    assert [entry.parsed for entry in found.samples] == ["yes", "no", "yes"]
    assert "missing" not in found.odd


def test_images_with_several_questions_need_more_than_the_image(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"image_id": 42, "pred": "yes"}, {"image_id": 42, "pred": "no"}]))
    with pytest.raises(DataError, match="row 0: image 42 has several questions"):
        score_predictions("mci", load_task("mci"), QUESTIONS, file)


@pytest.mark.usefixtures("without_java")
def test_an_id_that_is_text_where_a_number_is_meant_is_counted(tmp_path: Path) -> None:
    samples = [Sample(f"c/{i}", "c", i, Path("x"), "", ("a dog",), "") for i in (42, 43)]
    file = tmp_path / "a.json"
    rows = [{"image_id": "42", "caption": "a"}, {"image_id": "000000000043", "caption": "b"}]
    file.write_text(json.dumps(rows))
    found = score_predictions("c", load_task("captioning"), samples, file)
    assert len(found.odd["id is text"]) == 2
    assert "missing" not in found.odd


def test_samples_without_references_are_not_scored_as_wrong(tmp_path: Path) -> None:
    samples = [Sample(f"vqa/{i}", "vqa", i, Path("x"), "q?", (), "") for i in range(2)]
    found = score_predictions(
        "vqa", load_task("vqa"), samples, write(tmp_path / "a.json", "x", "y")
    )
    score = found.scores["vqa_accuracy"]
    assert score.value is None
    assert "not public" in str(score.reason)


def test_the_command_prints_what_is_odd_and_how_many_samples_count(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "0", "answer": ""}\n{"id": "nowhere", "answer": "yes"}\n')
    arguments = ["score", "mci", "--predictions", str(file), "--data", SMALL, "--answered-only"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert "over 1 of the split's" in shown
    assert "empty answers: 1: mci/0" in shown
    assert "answers to no sample of the split, not scored: 1:" in shown
    with pytest.raises(DataError, match="exclude each other"):
        CliRunner().invoke(app, [*arguments, "--missing-is-wrong"], catch_exceptions=False)


@pytest.mark.usefixtures("without_java")
def test_captions_are_checked_with_java_on_request(tmp_path: Path) -> None:
    from encoder_bench.data.folder import open_data

    recipe = load_task("captioning")
    samples = open_data(SMALL).samples(
        "captioning", reader=recipe.reader, source=recipe.source, split="test"
    )
    file = tmp_path / "p.json"
    file.write_text(json.dumps([{"image_id": s.image_id, "caption": s.target} for s in samples]))
    arguments = ["score", "captioning", "--predictions", str(file), "--data", SMALL]
    arguments += ["--check-java", "--json"]
    shown = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    assert shown["java_check"]["different"] == []
    assert shown["java_check"]["compared"] > 50


def test_the_lift_of_an_error_is_over_the_smallest_blind_one(tmp_path: Path) -> None:
    recipe = load_task("oc").model_copy(update={"primary": "counting_error"})
    found = score_predictions("oc", recipe, COUNTS, write(tmp_path / "a.jsonl", "1", "2", "9"))
    assert found.scores["counting_error"].value == 0.0
    # the best constant of 1, 2 and 9 is 2, which is off by 1, 0 and 7
    assert found.blind["constant"].value == pytest.approx(8 / 3)
    assert found.lift == pytest.approx(min(s.value or 0 for s in found.blind.values()))
