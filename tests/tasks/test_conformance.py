"""`encoder-bench score`: files in every form, variants side by side, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from encoder_bench.cli.app import app
from encoder_bench.data.sample import Sample
from encoder_bench.errors import DataError
from encoder_bench.recipes import load_task
from encoder_bench.tasks.conformance import read_answers, score_predictions

COUNTS = [
    Sample(f"oc/{i}", "oc", i, Path("x"), "How many?", (str(truth),), str(truth))
    for i, truth in enumerate((1, 2, 9))
]


def write(path: Path, *texts: str) -> Path:
    path.write_text("\n".join(json.dumps({"id": i, "answer": t}) for i, t in enumerate(texts)))
    return path


def test_variants_are_scored_side_by_side_and_show_where_they_part(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", "one", "I see two of 4", "nigh")
    found = score_predictions("oc", load_task("oc"), COUNTS, file)
    assert found.scores["counting_accuracy"].value == pytest.approx(100 / 3)
    assert found.variants() == ["counting_accuracy_gvt"]
    differing = {entry.sample.sample_id for entry in found.differing("counting_accuracy_gvt")}
    gvt = found.scores["counting_accuracy_gvt"].value
    assert gvt is not None
    assert len(differing) == round(abs(gvt - 100 / 3) * 3 / 100)
    assert found.parse_failures == 2


@pytest.mark.parametrize("form", ["list", "lines", "csv", "ours"])
def test_every_form_of_file_is_read(tmp_path: Path, form: str) -> None:
    rows = [{"question_id": 7, "answer": "red"}, {"question_id": 8, "answer": "a\u2028b"}]
    path = tmp_path / ("a.csv" if form == "csv" else "a.json")
    if form == "list":
        path.write_text(json.dumps(rows))
    elif form == "lines":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif form == "csv":
        path.write_text("question_id,answer\n7,red\n8,a\u2028b\n")
    else:
        ours = [{"sample_id": str(r["question_id"]), "prediction": r["answer"]} for r in rows]
        blind = [{**row, "control": "no-image"} for row in ours]
        path.write_text("\n".join(map(json.dumps, [*ours, *blind])))
    assert read_answers(path) == {"7": "red", "8": "a\u2028b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"answer": "x"}]', "row 0: needs one of"),
        ('{"id": 1, "answer": "x"}\n{"id": 1, "answer": "y"}', ":2: a second answer to 1"),
        ('{"id": 1', ":1: not valid JSON"),
        ("[1]", "row 0: not an object"),
        ("", "no answers"),
        ('[{"id": 1,', "not valid JSON"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_answers(path)


def test_missing_answers_are_refused_or_wrong_but_never_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", "1", "2")
    with pytest.raises(DataError, match="no answer to 1 of 3 samples, the first oc/2"):
        score_predictions("oc", load_task("oc"), COUNTS, file)
    found = score_predictions("oc", load_task("oc"), COUNTS, file, missing_is_wrong=True)
    assert found.scores["counting_accuracy"].value == pytest.approx(200 / 3)
    assert found.missing == ("oc/2",)
    stray = tmp_path / "stray.jsonl"
    stray.write_text('{"id": "other/1", "answer": "x"}')
    with pytest.raises(DataError, match="no id of it is one of task 'oc'"):
        score_predictions("oc", load_task("oc"), COUNTS, stray)


def test_the_command_prints_scores_and_writes_every_sample(tmp_path: Path) -> None:
    from encoder_bench.data.folder import open_data

    recipe = load_task("mci")
    samples = open_data("scenes").samples(
        "mci", reader=recipe.reader, source=recipe.source, split="test"
    )
    file = tmp_path / "p.json"
    file.write_text(
        json.dumps([{"id": s.sample_id, "answer": f"{s.target} or so"} for s in samples])
    )
    output = tmp_path / "samples.csv"
    arguments = ["score", "mci", "--predictions", str(file), "--output", str(output)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "yesno_accuracy_gvt" in result.stdout
    assert len(list(csv.DictReader(output.open()))) == len(samples)
    shown = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert shown["scores"]["yesno_accuracy"]["value"] == 100.0
    assert shown["parse_failures"] == 0
