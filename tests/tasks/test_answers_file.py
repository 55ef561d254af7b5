"""Predictions files of this and other tools: layouts, ids, columns, and whatever text comes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from encoder_bench.base.errors import DataError
from encoder_bench.base.recipes import load_task
from encoder_bench.cli.app import app
from encoder_bench.data.sample import Sample
from encoder_bench.tasks.answers_file import read_answers_file
from encoder_bench.tasks.matching import match
from encoder_bench.tasks.score_file import score_predictions

ANSWERS = ["red", "2 dogs", "no"]


def vqa_sample(question_id: int, image: int, question: str, *answers: str) -> Sample:
    return Sample(f"vqa/{question_id}", "vqa", image, Path("x"), question, answers, answers[0])


VQA = [
    vqa_sample(42000, 42, "What colour is it?", "green", "lime"),
    vqa_sample(42001, 42, "How many dogs?", "3", "three"),
    vqa_sample(7000, 7, "Is it wet?", "yes", "yeah"),
]
COCO = [
    Sample(f"captioning/{i}", "captioning", i, Path("x"), "", (text, "a thing"), text)
    for i, text in ((42, "a dog"), (7, "two cats"), (1, "a bus"))
]


def dump(path: Path, content: Any) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in content))
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".xlsx":
        pd.DataFrame(content).to_excel(path, index=False)
    else:  # as VLMEvalKit writes tables
        separator = "," if path.suffix == ".csv" else "\t"
        pd.DataFrame(content).to_csv(path, sep=separator, index=False, quoting=csv.QUOTE_ALL)
    return path


def read(path: Path, samples: Sequence[Sample], column: str | None = None) -> list[str]:
    found, _ = match(read_answers_file(path, column), "a", samples)
    assert set(found) == {sample.sample_id for sample in samples}
    return [found[sample.sample_id] for sample in samples]


def lmms(index: int, nested: dict[str, Any]) -> dict[str, Any]:
    """A line of `DATE_samples_TASK.jsonl` as lmms-eval 0716c69 writes it."""
    return {
        "doc_id": index,
        "target": "green",
        "filtered_resps": [ANSWERS[index]],
        "doc_hash": "0a",
        "input": f"{VQA[index].question}\nAnswer the question using a single word or phrase.",
        **nested,
    }


def lm_eval(index: int, answer: Any) -> dict[str, Any]:
    """A line of `samples_TASK_DATE.jsonl` as lm-evaluation-harness da21196 writes it."""
    question = VQA[index].question
    doc = {"question_id": int(VQA[index].sample_id[4:]), "question": question, "answer": "green"}
    return {
        "doc_id": index,
        "doc": doc,
        "target": "green",
        "arguments": {"gen_args_0": {"arg_0": question, "arg_1": {"until": ["\n"]}}},
        "resps": [[answer]],
        "filtered_resps": [answer],
        "filter": "none",
        "metrics": ["exact_match"],
        "doc_hash": "0a",
        "prompt_hash": "0b",
        "target_hash": "0c",
        "exact_match": 0.0,
    }


def table(answers: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of MODEL_SET.xlsx as VLMEvalKit 0044c57 writes them; `index` counts the rows."""
    return [
        {"index": i, "question": s.question, "answer": str(list(s.references)), "prediction": text}
        for i, (s, text) in enumerate(zip(VQA, answers, strict=True))
    ]


def rows(**columns: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


QUESTION_IDS = [42000, 42001, 7000]
LAYOUTS: dict[str, tuple[str, Any, str]] = {
    "lmms-eval with a submission": (
        "a.jsonl",
        [lmms(i, {"submission": {"question_id": q}}) for i, q in enumerate(QUESTION_IDS)][::-1],
        "lmms-eval samples (JSON lines)",
    ),
    "lmms-eval without any id": (
        "a.jsonl",
        [lmms(i, {"exact_match": 0.0}) for i in range(3)],
        "lmms-eval samples (JSON lines)",
    ),
    "lmms-eval of earlier versions": (
        "vqav2_val.json",
        {"args": {"model": "x"}, "model_configs": {}, "logs": [lm_eval(i, a) for i, a in
         enumerate(ANSWERS)], "time": "12"},
        "lmms-eval log (JSON list under 'logs')",
    ),
    "lm-eval": (
        "a.jsonl", [lm_eval(i, a) for i, a in enumerate(ANSWERS)], "lm-eval samples (JSON lines)"
    ),
    "VLMEvalKit xlsx": ("a.xlsx", table(ANSWERS), "VLMEvalKit predictions (Excel sheet)"),
    "VLMEvalKit tsv": ("a.tsv", table(ANSWERS), "VLMEvalKit predictions (TSV)"),
    "VLMEvalKit csv": ("a.csv", table(ANSWERS), "VLMEvalKit predictions (CSV)"),
    "VLMEvalKit json": ("a.json", table(ANSWERS), "VLMEvalKit predictions (JSON list)"),
    "ids and answers": (
        "a.json", dict(zip(map(str, QUESTION_IDS), ANSWERS, strict=True)),
        "rows (JSON object of ids and answers)",
    ),
    "a wrapped list": (
        "a.json", {"results": rows(question_id=QUESTION_IDS, answer=ANSWERS), "n": 3},
        "VQA results (JSON list under 'results')",
    ),
    "answers as lists": (
        "a.json", rows(question_id=QUESTION_IDS, answer=[[a] for a in ANSWERS]),
        "VQA results (JSON list)",
    ),
    "LLaVA": (
        "a.jsonl",
        rows(question_id=QUESTION_IDS, prompt=["?"] * 3, text=ANSWERS, answer_id=["x"] * 3),
        "rows (JSON lines)",
    ),
    "ours": (
        "a.jsonl",
        [*rows(sample_id=[s.sample_id for s in VQA], prediction=ANSWERS),
         {"sample_id": "vqa/42000", "prediction": "blue", "control": "no-image"}],
        "encoder-bench predictions (JSON lines)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_and_named(tmp_path: Path, name: str) -> None:
    file, content, form = LAYOUTS[name]
    path = dump(tmp_path / file, content)
    assert read(path, VQA) == ANSWERS
    assert read_answers_file(path).form == form


@pytest.mark.usefixtures("without_meteor")
def test_coco_results_are_matched_by_image_and_not_by_row_number(tmp_path: Path) -> None:
    # ids of the rows are images of the data too, as in files of pycocotools
    content = rows(image_id=[42, 7, 1], id=[1, 42, 7], caption=["a", ["b"], [["c"]]])
    path = dump(tmp_path / "a.json", content)
    assert read(path, COCO) == ["a", "b", "c"]
    found = score_predictions("captioning", load_task("captioning"), COCO, path)
    assert found.form == "COCO results (JSON list), matched by image_id, answers in caption"
    mapping = dump(tmp_path / "b.json", {"COCO_val2014_000000000042.jpg": ["a"], "7": "b", "1": ""})
    assert read(mapping, COCO) == ["a", "b", ""]
    nested = [
        {"doc_id": i, "target": "", "filtered_resps": [t], "input": "Describe.",
         "coco_Bleu_4": {"answer": ["x"], "pred": t, "image_id": m, "id": i}}
        for i, (m, t) in enumerate(((1, "c"), (7, "b"), (42, "a")))
    ]  # fmt: skip
    assert read(dump(tmp_path / "c.jsonl", nested), COCO) == ["a", "b", "c"]


def test_the_truth_is_never_scored_as_the_prediction(tmp_path: Path) -> None:
    truths = [sample.references[0] for sample in VQA]
    both = dump(
        tmp_path / "a.json", rows(question_id=QUESTION_IDS, answer=truths, pred=["zzz"] * 3)
    )
    assert read(both, VQA) == ["zzz"] * 3
    wrong = dump(
        tmp_path / "b.json", rows(question_id=QUESTION_IDS, answer=ANSWERS, pred=["zzz"] * 3)
    )
    with pytest.raises(DataError, match=r"each of pred, answer may hold the predictions; .*--col"):
        read(wrong, VQA)
    assert read(wrong, VQA, "answer") == ANSWERS
    with pytest.raises(DataError, match=r"needs one of .* and one of guess; it has question_id"):
        read(wrong, VQA, "guess")
    lists = dump(
        tmp_path / "c.json",
        rows(question_id=QUESTION_IDS, answer=[list(s.references) for s in VQA]),
    )
    with pytest.raises(DataError, match="'answer' holds lists"):
        read(lists, VQA)


def test_row_numbers_are_no_ids_where_the_questions_differ(tmp_path: Path) -> None:
    samples = [vqa_sample(i, i, s.question, *s.references) for i, s in enumerate(VQA)]
    content = table(ANSWERS)[::-1]
    assert read(dump(tmp_path / "a.json", content), samples) == ANSWERS
    for row in content:  # another tool's order
        row["index"] = (row["index"] + 1) % 3
    with pytest.raises(DataError, match=r"by 'index', .*its question or truth is another"):
        read(dump(tmp_path / "b.json", content), samples)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.json", '[{"answer": "x"}]', "row 0: needs one of"),
        ("a.json", '{"id": 1', ":1: not valid JSON"),
        ("a.json", "[1]", "row 0: not an object"),
        ("a.json", "7", ":1: not an object"),
        ("a.json", "", "no answers"),
        ("a.json", '[{"id": 1,', r"not valid JSON .*cut short"),
        ("a.json", '{"id": 1, "answer": "x"}\n{"id": 2, "ans', r":2: not valid JSON .*cut short"),
        ("a.json", "[" * 100_000, "not valid JSON"),
        ("a.json", '[{"id": 1, "answer": ' + "9" * 5000 + "}]", "not valid JSON"),
        ("a.json", '{"a": [{"id": 1}], "b": [{"id": 1}]}', r"several lists in it \(a, b\)"),
        ("a.json", '{"a": {"b": 1}}', "neither rows nor one answer for each id"),
        ("a.json", '[{"doc_id": 0, "filtered_resps": [[-1.5, true], [-2, false]]}]', "2 responses"),
        ("a.json", '[{"doc_id": 0, "resps": ["a"], "filter": "x"},'
         '{"doc_id": 0, "resps": ["a"], "filter": "y"}]', r"several filters \(x, y\)"),
        ("a.csv", "id,answer\n0\n", r"a\.csv:2: another number of fields"),
        ("a.xlsx", "not a zip", "cannot be read as an Excel sheet"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    path = tmp_path / file
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_answers_file(path)


def test_tables_of_pandas_and_of_european_excel_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question_id;answer\n42000.0;a, b\n42001.0;c\n7000.0;\n")
    assert read(path, VQA) == ["a, b", "c", ""]
    path.write_text("question_id,model_output\n42000,a\n")
    with pytest.raises(
        DataError, match=r"it has question_id, model_output \(--column names another"
    ):
        read_answers_file(path)
    path.write_text("question_id,answer\n5,a\n")
    with pytest.raises(DataError, match=r"no id of it \(the first is 5\) is one of task 'a'"):
        read(path, VQA)


def test_fields_may_be_long_and_hold_any_line_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question_id,answer\n42000," + "x" * 500_000 + "\n42001,a\u2028b\n7000,\n")
    assert [len(text) for text in read(path, VQA)] == [500_000, 3, 0]
    path = tmp_path / "a.jsonl"
    lines = rows(question_id=QUESTION_IDS, answer=["a\u2028b", "c", "d"])
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in lines))
    assert read(path, VQA) == ["a\u2028b", "c", "d"]


any_text = st.text(st.characters(exclude_categories=[]), max_size=40) | st.sampled_from(
    ["9" * 5000, "\ud800", "-" + "9" * 400, "yes no", "1,000", "\x00", ""]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["sample_id", "question_id", "image_id", "id", "index", "doc_id", "doc", "filtered_resps",
     "resps", "prediction", "answer", "caption", "question", "input", "target", "filter", "logs"]
)  # fmt: skip
shapes = json_values | st.lists(st.dictionaries(keys, json_values, max_size=5), max_size=3)


def survives(path: Path, score: Callable[[], object]) -> None:
    """A call returns, or its error is one line that any terminal prints."""
    try:
        score()
    except DataError as error:
        str(error).encode()


fuzzed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzzed
@given(content=shapes, task=st.sampled_from(["oc", "mci", "vqa"]))
def test_any_json_is_scored_or_refused(tmp_path: Path, content: Any, task: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    survives(path, lambda: score_predictions(task, load_task(task), SAMPLES[task], path))


SAMPLES = {
    task: [Sample(f"{task}/{i}", task, i, Path("x"), "q?", truth, truth[0]) for i in range(3)]
    for task, truth in {"oc": ("2",), "mci": ("No.",), "vqa": ("red",) * 10}.items()
}


@fuzzed
@given(texts=st.lists(any_text, min_size=3, max_size=3), task=st.sampled_from(sorted(SAMPLES)))
def test_any_text_is_scored_and_printed(tmp_path: Path, texts: list[str], task: str) -> None:
    path = dump(tmp_path / "a.json", rows(id=[0, 1, 2], prediction=texts))
    found = score_predictions(task, load_task(task), SAMPLES[task], path)
    assert all(score.samples == 3 or score.value is None for score in found.scores.values())
    json.dumps([[e.prediction, e.parsed] for e in found.samples], ensure_ascii=False).encode()


@fuzzed
@given(content=any_text, suffix=st.sampled_from([".csv", ".tsv", ".json", ".jsonl"]))
def test_any_file_is_read_or_refused(tmp_path: Path, content: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"id\tanswer\n" + content.encode("utf-8", "surrogatepass"))
    survives(path, lambda: read_answers_file(path))


def test_huge_numbers_and_lone_surrogates_reach_the_screen(tmp_path: Path) -> None:
    from encoder_bench.data.folder import open_data

    data, recipe = "scenes:3:10:2:20", load_task("oc")
    samples = open_data(data).samples(
        "oc", reader=recipe.reader, source=recipe.source, split="test"
    )
    texts = ["9" * 5000, "9" * 400, "\ud800 \u4e5d", "\x00"] * len(samples)
    content = [
        {"sample_id": s.sample_id, "prediction": t} for s, t in zip(samples, texts, strict=False)
    ]
    path = dump(tmp_path / "a.json", [*content, {"sample_id": "\ud800", "prediction": "\ud800"}])
    for more in ([], ["--json"], ["--output", str(tmp_path / "a.csv")]):
        arguments = ["score", "oc", "--predictions", str(path), "--data", data, *more]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0
    found = score_predictions("oc", recipe, samples, path)
    assert found.scores["counting_accuracy_gvt"].value is not None
    assert found.scores["counting_error_gvt"].value is not None
    assert io.StringIO((tmp_path / "a.csv").read_text()).readline().startswith("sample_id")


def test_few_human_answers_cap_the_official_accuracy(tmp_path: Path) -> None:
    samples = [vqa_sample(i, i, f"{i}?", *["red"] * n) for i, n in enumerate((1, 2, 3, 4))]
    path = dump(tmp_path / "a.json", rows(id=range(4), answer=["red"] * 4))
    found = score_predictions("vqa", load_task("vqa"), samples, path)
    assert found.ceiling == pytest.approx((0 + 100 / 3 + 200 / 3 + 100) / 4)
    assert found.scores["vqa_accuracy"].value == pytest.approx(found.ceiling)
    assert found.scores["exact_match"].value == 100.0
    enough = score_predictions("vqa", load_task("vqa"), samples[3:], path)
    assert enough.ceiling is None
