"""The comparison table: its shape, its arithmetic, what it refuses to mix, its formats."""

from __future__ import annotations

import io
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from result_builders import COLUMNS, encoder_facts, make_record, table, task_scores
from rich.console import Console

from encoder_bench.base.errors import RecordError, UnknownNameError
from encoder_bench.base.record import RunRecord, require_records, write_record
from encoder_bench.results.export import load_results
from encoder_bench.results.formats import (
    FORMATS,
    escape_latex,
    escape_markdown,
    print_page,
    print_table,
    write_tables,
)
from encoder_bench.results.page import table_page
from encoder_bench.results.score import Cell, over_seeds
from encoder_bench.results.table import arranged, build_tables

BLIND = {"no-image": 30.0, "shuffled-images": 28.0, "constant": 20.0, "question-majority": 35.0}


def text(records: list[RunRecord], ending: str = "md", **options: Any) -> str:
    return FORMATS[ending](build_tables(records, **options))


def encoders(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["Row"] == "encoder"]


def test_the_published_shape_in_its_order() -> None:
    frame = table([make_record()])
    assert list(frame.columns[1:12]) == [
        "Joint Tuning", "Row", "Supervision", "Visual Encoder", "Pretraining Images",
        "VQA Acc", "CIDEr", "SPICE", "OC Acc", "MCI Acc", "Avg",
    ]  # fmt: skip


def test_avg_is_the_mean_without_spice() -> None:
    # DeiT, frozen, of the published table: 48.3, 65.8, 37.5, 83.6 with Avg printed as 58.8.
    row = table([make_record(values=(48.3, 65.8, 37.5, 83.6))]).iloc[0]
    assert row["Avg"] == pytest.approx(58.8)
    assert row["Avg ±"] == pytest.approx(2.0)


def test_avg_is_not_available_where_a_score_is_missing_and_says_which() -> None:
    records = [make_record(values=(50, None, 40, 80))]
    frame = table(records)
    assert pd.isna(frame["Avg"][0])
    assert frame["Avg reason"][0] == "no CIDEr"
    assert frame["CIDEr reason"][0] == "no Java found"
    assert "n/a<sup>" in text(records)
    assert "no Java found" in text(records)
    assert " 0.0 " not in text(records)


def test_a_task_that_no_run_has_leaves_no_column_and_one_that_some_lack_is_not_available() -> None:
    part = make_record(tasks={"vqa": task_scores("vqa", 50.0)})
    frame = table([part])
    assert not {"OC Acc", "SPICE"} & set(frame.columns)
    header = text([part]).splitlines()[2]
    assert header.split(" | ")[-1] == "VQA Acc |", "neither other tasks nor their mean"
    both = table([part, make_record("other")])
    assert sorted(both["OC Acc reason"]) == ["", "task not run"]
    apart = table([make_record(tasks={"vqa": task_scores("vqa", 50.0)}, data="a"), make_record()])
    assert list(apart.columns) == list(table([make_record()]).columns)


def test_mean_rank_is_scale_free_and_ties_share() -> None:
    values = {"a": (50, 900, 40, 80), "b": (51, 60, 41, 80), "c": (49, 50, 42, 70)}
    frame = table([make_record(name, values=each) for name, each in values.items()])
    ranks = frame.set_index("Visual Encoder")["Mean Rank"]
    assert ranks.to_dict() == {
        "A": pytest.approx((2 + 1 + 3 + 1.5) / 4),
        "B": pytest.approx((1 + 2 + 2 + 1.5) / 4),
        "C": pytest.approx((3 + 3 + 1 + 3) / 4),
    }
    assert table([make_record()])["Mean Rank"].isna().all(), "one encoder has no rank"
    lacking = [make_record("a"), make_record("b", values=(50, None, 40, 80))]
    assert table(lacking)["Mean Rank"].isna().all()


def test_the_notes_call_no_average_a_percentage() -> None:
    printed = text([make_record("a"), make_record("b", values=(50, 300, 40, 80))])
    assert "Avg, no percentage" in printed
    assert "CIDEr is times 100" in printed


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("VQA Acc", ["B", "A", "C"]),
        ("oc acc", ["C", "B", "A"]),
        ("mean rank", ["A", "C", "B"]),
        ("visual encoder", ["A", "B", "C"]),
        ("encoder parameters (m)", ["A", "B", "C"]),
    ],
)
def test_rows_of_a_mode_are_sorted_and_its_baselines_stay_last(
    column: str, order: list[str]
) -> None:
    values = {"a": (50, 900, 40, 80), "b": (51, 60, 41, 60), "c": (49, 70, 42, 70)}
    records = [
        make_record(name, values=each, joint=joint, controls=BLIND)
        for name, each in values.items()
        for joint in (False, True)
    ]
    tables = build_tables(records, extra=["parameters"])
    (found,) = arranged(tables, sort=column, contains=None)
    labels = [row.label for row in found.rows]
    assert labels[:3] == labels[5:8] == order
    assert labels[3:5] == labels[8:10] == ["no image", "shuffled images"]


def test_a_filter_keeps_what_holds_the_word_and_the_marks_of_the_whole_table() -> None:
    records = [make_record("a", values=(90, 60, 40, 80)), make_record("b"), make_record("bb")]
    records += [make_record("a", joint=True, controls=BLIND)]
    (found,) = arranged(build_tables(records), sort=None, contains="B")
    labels = [row.label for row in found.rows]
    assert labels == ["B", "BB", "constant answer", "majority per question"]
    assert {row.cells["VQA Acc"].rank for row in found.rows if row.runs} == {2}
    (joint,) = arranged(build_tables(records), sort=None, contains="joint")
    assert {row.joint for row in joint.rows if row.runs} == {True}
    with pytest.raises(RecordError, match="--filter zebra"):
        arranged(build_tables(records), sort=None, contains="zebra")
    with pytest.raises(UnknownNameError, match="did you mean 'Avg'"):
        arranged(build_tables(records), sort="Av", contains=None)


def test_best_and_second_are_marked_within_each_half_as_printed() -> None:
    records = [
        make_record("a", values=(50.04, 1, 1, 1)),
        make_record("b", values=(50.01, 2, 1, 1)),
        make_record("c", values=(49.0, 3, 1, 1)),
        make_record("a", joint=True, values=(10, 1, 1, 1)),
        make_record("b", joint=True, values=(20, 1, 1, 1)),
    ]
    frame = encoders(table(records)).set_index(["Joint Tuning", "Visual Encoder"])
    assert frame["VQA Acc rank"].to_dict() == {
        (False, "A"): 1, (False, "B"): 1, (False, "C"): 2, (True, "A"): 2, (True, "B"): 1,
    }  # fmt: skip
    assert frame["CIDEr rank"].isna().to_dict()[False, "A"]


def test_a_half_of_one_row_has_no_best() -> None:
    assert table([make_record()])["VQA Acc rank"].isna().all()


def test_blind_rows_are_never_best() -> None:
    controls = {"no-image": 99.0}
    frame = table([make_record(name, controls=controls) for name in ("a", "b")])
    blind = frame[frame["Row"] == "blind"]
    assert blind["VQA Acc"].tolist() == [99.0]
    assert blind["VQA Acc rank"].isna().all()


def test_blind_rows_of_the_model_end_each_half_and_those_of_the_data_the_table() -> None:
    records = [make_record(joint=joint, controls=BLIND) for joint in (False, True)]
    frame = table(records)
    assert list(zip(frame["Joint Tuning"], frame["Visual Encoder"], strict=True)) == [
        (False, "DINO"), (False, "no image"), (False, "shuffled images"),
        (True, "DINO"), (True, "no image"), (True, "shuffled images"),
        (None, "constant answer"), (None, "majority per question"),
    ]  # fmt: skip


def test_a_control_that_knew_the_test_answers_says_so_and_has_no_part_in_lift() -> None:
    frame = table([make_record(controls={"no-image": 30.0, "majority": 99.0})])
    assert frame["VQA Acc lift"][0] == 20.0
    assert "majority per question (knows the test answers)" in frame["Visual Encoder"].tolist()


def test_a_control_that_was_not_run_has_no_row() -> None:
    frame = table([make_record(controls={"constant": 20.0})])
    assert frame[frame["Row"] == "blind"]["Visual Encoder"].tolist() == ["constant answer"]


@pytest.mark.parametrize(
    "other",
    [
        make_record("b", data="coco"),
        make_record("b", limit=10),
        make_record("b", adapter="resampler"),
        make_record("b", tasks={"vqa": task_scores("vqa", 50.0, prompt="Q: {question}")}),
    ],
    ids=["data", "limit", "adapter", "prompt"],
)
def test_records_that_may_not_be_compared_stand_in_different_tables(other: RunRecord) -> None:
    frame = encoders(table([make_record("a"), other]))
    assert (
        frame["Setting"].nunique() == 2 or other.tasks["vqa"].definition["prompt"] != "{question}"
    )
    assert frame["VQA Acc rank"].isna().all()


def test_frozen_and_joint_runs_of_one_recipe_share_a_table() -> None:
    assert table([make_record(), make_record(joint=True)])["Setting"].nunique() == 1


def test_an_adapter_renamed_is_the_same_adapter() -> None:
    renamed = make_record("b")
    renamed = renamed.model_copy(update={"adapter": {**renamed.adapter, "name": "copy.toml"}})
    frame = encoders(table([make_record("a"), renamed]))
    assert frame["Setting"].nunique() == 1


def test_settings_that_change_no_score_share_a_row() -> None:
    """Two plans of one identity are one row: the newer run replaces the older."""
    old, new = make_record(joint=True), make_record(joint=True, created="2026-02-01T00:00:00+00:00")
    faster = {
        **new.adapter,
        "name": "copy.toml",
        "description": "the same, faster",
        "evaluation_batch_images": 64,
        "encoder": {**new.adapter["encoder"], "gradient_checkpointing": True},
        "training": {
            **new.adapter["training"],
            "row_length": 4096,
            "attention": "sdpa",
            "checkpoint_every": 7,
            "keep_checkpoints": 3,
            "feature_cache": False,
        },
    }
    definition = {**new.tasks["vqa"].definition, "description": "other words", "column": "VQA"}
    tasks = new.tasks | {"vqa": new.tasks["vqa"].model_copy(update={"definition": definition})}
    new = new.model_copy(update={"run_id": "new", "adapter": faster, "tasks": tasks})
    frame = encoders(table([old, new]))
    assert frame["Runs"].tolist() == ["new"]
    assert "replaces an older run" in frame["Marks"].iloc[0]
    slower = {**faster, "training": {**faster["training"], "precision": "bfloat16"}}
    frame = table([old, new.model_copy(update={"adapter": slower})])
    assert frame["Setting"].nunique() == 2, "precision changes scores"


def test_seeds_are_averaged_with_both_spreads() -> None:
    records = [make_record(seed=seed, values=(50 + seed, 60, 40, 80)) for seed in range(3)]
    row = table(records).iloc[0]
    assert row["VQA Acc"] == pytest.approx(51.0)
    # s = 1, t(2, 97.5%) = 4.302653 (tables), so the seeds' part is 2.484138.
    assert row["VQA Acc ±"] == pytest.approx((2.0**2 + 2.484138**2) ** 0.5, abs=1e-5)
    assert row["Seeds"] == 3
    assert "Means over seeds" in text(records)
    # t(99, 97.5%) = 1.984217 (tables), so the images' variance is (2 / 1.984217)^2
    images = (2.0 / 1.984217) ** 2
    assert row["VQA Acc seed share"] == pytest.approx(1 / 3 / (1 / 3 + images), abs=1e-5)
    assert "variance" not in text(records), "no footnote per row"
    assert 'title="' in text(records, "html")
    assert "% of the variance comes from seeds" in text(records, "html")


def test_device_hours_count_the_steps_before_an_interruption() -> None:
    record = make_record()
    training = record.training | {"seconds": 7200.0, "processes": 2}
    resumed = record.model_copy(
        update={"training": training, "seconds": {"training": 0.1, "oc": 5.0, "encoding": 9.0}}
    )
    extra = table([resumed], extra=["device-hours", "training-seconds"])
    assert extra["Device-hours"][0] == pytest.approx(4.0)
    assert extra["Training (s)"][0] == pytest.approx(7200.0)


def test_footnotes_speak_of_the_columns_that_are_there() -> None:
    two = {name: task_scores(name, 50.0) for name in ("oc", "mci")}
    records = [make_record(name, tasks=two, controls=BLIND) for name in ("dino", "clip")]
    page = text(records)
    assert "Mean Rank is the mean of the ranks in OC Acc and MCI Acc among" in page
    assert "Avg" not in page
    assert "SPICE" not in page
    whole = text(with_lifts())
    assert "Under each score (SPICE aside)" in whole
    assert "Under Avg, the mean lift" in whole


def test_the_newest_run_of_a_seed_replaces_older_ones_and_says_so() -> None:
    old = make_record(values=(1, 1, 1, 1), torch="2.8.0")
    new = make_record(created="2026-02-01T00:00:00+00:00")
    frame = table([new, old])
    assert frame["VQA Acc"].tolist() == [50.0]
    assert "replaces an older run" in frame["Marks"][0]
    for form in ("md", "tex", "html"):
        assert "replaces an older run of the same seed" in text([new, old], form)


def test_rows_of_one_name_say_what_tells_them_apart() -> None:
    deep = make_record(facts=encoder_facts("dino", layer=(-2,)))
    fast = make_record(joint=True, encoder_lr=1e-4)
    labels = encoders(table([make_record(), deep, make_record(joint=True), fast]))["Visual Encoder"]
    assert labels.tolist() == [
        "DINO (layer -1)", "DINO (layer -2)",
        "DINO (layer -1, encoder lr 0.0001)", "DINO (layer -1, encoder lr 1e-05)",
    ]  # fmt: skip


def test_a_column_holds_one_task_whoever_names_it() -> None:
    own = task_scores("vqa", 70.0, prompt="{question} Be brief.")
    both = {"vqa": task_scores("vqa", 50.0), "my-vqa": own}
    records = [
        make_record(tasks={"vqa": task_scores("vqa", 50.0)}),
        make_record("clip", tasks={"my-vqa": own}),
        make_record("mae", tasks=both),
        make_record("deit", tasks=dict(reversed(both.items()))),
    ]
    tables = build_tables(records)
    shared = [[row.label for row in each.rows if row.runs] for each in tables]
    assert sorted(shared) == [["CLIP", "DEIT", "MAE"], ["DINO"]]
    rows = {row.label: row.cells for each in tables for row in each.rows}
    assert (rows["DINO"]["VQA Acc"].value, rows["CLIP"]["VQA Acc"].value) == (50.0, 70.0)
    assert rows["MAE"]["VQA Acc"].value == rows["DEIT"]["VQA Acc"].value == 70.0
    assert rows["MAE"]["VQA Acc (vqa)"].value == 50.0


def test_no_two_tables_have_one_heading() -> None:
    record = make_record()
    other = record.language_model.model_copy(update={"weights_sha256": "f" * 64})
    moved = make_record("clip").model_copy(update={"language_model": other})
    headings = [each.heading for each in build_tables([record, moved])]
    assert len(set(headings)) == 2
    assert any("LLM weights (ffffff)" in heading for heading in headings)


def test_random_weights_are_marked_in_every_format() -> None:
    record = make_record(facts=encoder_facts("dino", pretrained=False), llm_pretrained=False)
    assert table([record])["Pretraining Images"][0] == "none"
    for ending in FORMATS:
        assert text([record], ending).count("random weights") >= 2


def test_a_random_twin_is_among_the_baselines_and_its_seeds_are_one_row() -> None:
    def twin(seed: int) -> RunRecord:
        facts = encoder_facts("random:dino", supervision="none", pretrained=False)
        facts = facts.model_copy(update={"fingerprint": f"of seed {seed}"})
        return make_record(facts=facts, seed=seed, values=(90, 90, 90, 90))

    records = [twin(1), make_record("dino"), twin(2), make_record("mae"), make_record(joint=True)]
    frame = table([*records, make_record("clip", controls={"no-image": 9})])
    assert frame["Row"].tolist() == ["encoder"] * 3 + ["random", "blind", "encoder"]
    assert frame["Seeds"][3] == 2
    assert frame["VQA Acc rank"][:4].tolist() == [1, 1, 1, pd.NA]
    lines = table_page(build_tables(records)[0]).lines
    assert {entry.emphasis for entry in lines[2].entries if entry.text} == {"blind"}


@given(st.permutations(range(6)))
@settings(max_examples=10, deadline=None)
def test_the_order_of_records_changes_nothing(order: list[int]) -> None:
    records = [
        make_record(name, joint=joint, controls=BLIND)
        for name in ("a", "b", "c")
        for joint in (False, True)
    ]
    assert text([records[i] for i in order], "csv") == text(records, "csv")


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_the_mean_over_seeds_lies_within_them_and_is_no_surer_than_one(values: list[float]) -> None:
    combined = over_seeds([Cell(value, 2.0, 10, 10) for value in values])
    assert combined.value is not None
    assert min(values) - 1e-9 <= combined.value <= max(values) + 1e-9
    assert combined.half_width is not None
    assert combined.half_width >= 2.0 - 1e-9


def test_one_seed_without_a_score_leaves_the_mean_unknown() -> None:
    combined = over_seeds([Cell(50.0, 2.0), Cell(None, reason="no Java found")])
    assert combined.seed_share is None
    assert combined.value is None
    assert combined.reason == "not measured in every seed: no Java found"


def with_lifts() -> list[RunRecord]:
    """Return two seeds that are best blind in different ways: VQA lifts of 15 and 10."""
    return [
        make_record(seed=0, values=(50, 60, 30, 80), controls={"no-image": 30, "constant": 35}),
        make_record(seed=1, values=(60, 70, 40, 80), controls={"no-image": 50, "constant": 20}),
    ]


def test_lift_is_over_each_runs_own_best_blind_control_and_then_a_mean_over_seeds() -> None:
    row = table(with_lifts()).iloc[0]
    # Less the best blind row of the table, which is a mean over seeds itself, it would be 15.
    assert row["VQA Acc lift"] == pytest.approx((15 + 10) / 2)
    assert row["OC Acc lift"] == pytest.approx((-5 - 10) / 2)
    assert row["Avg lift"] == pytest.approx((12.5 + 22.5 - 7.5 + 37.5) / 4)


def test_lift_is_unknown_where_a_score_or_a_control_is_in_any_seed() -> None:
    blind, blank = make_record(controls=BLIND), make_record(seed=1)
    frame = table([blind, blank])
    assert frame.filter(like=" lift").isna().all(axis=None)
    row = table([make_record(values=(50, None, 40, 80), controls=BLIND)]).iloc[0]
    assert row["VQA Acc lift"] == pytest.approx(15.0)
    assert pd.isna(row["CIDEr lift"])
    assert pd.isna(row["Avg lift"])
    assert table([blind]).iloc[1:].filter(like=" lift").isna().all(axis=None)


def test_lift_stands_under_its_score_in_every_format_and_a_footnote_says_what_it_is() -> None:
    records = with_lifts()
    line = text(records).splitlines()[4]
    assert re.findall(r"<br><sub>(.*?)</sub>", line) == ["+12.5", "+22.5", "-7.5", "+37.5", "+16.2"]
    assert text(records, "html").count("<br><small>") == 5
    assert "<br><small>-7.5</small></td>" in text(records, "html")
    lines = text(records, "tex").splitlines()
    place = next(n for n, line in enumerate(lines) if r"\scriptsize $+12.5$" in line)
    under, header = lines[place], lines[lines.index(r"\toprule") + 1]
    assert under.count("&") == header.count("&")
    assert r"{\scriptsize $-7.5$}" in under
    assert json.loads(text(records, "json"))[0]["OC Acc lift"] == -7.5
    assert pd.read_csv(io.StringIO(text(records, "csv")))["OC Acc lift"][0] == -7.5
    for ending in ("md", "html", "tex"):
        assert text(records, ending).count("lift over blind") == 1
    without = text([make_record()])
    assert "lift over blind" not in without
    assert "<sub>" not in without


def test_spice_has_its_lift_in_the_frame_alone() -> None:
    scores = task_scores("captioning", 60.0, controls={"no-image": 20.0}, spice=15.0)
    scores.controls["no-image"]["spice"] = replace(scores.metrics["spice"], value=4.0)
    records = [make_record(tasks={"captioning": scores})]
    assert table(records)["SPICE lift"][0] == pytest.approx(11.0)
    assert "+40.0" in text(records)
    assert "+11.0" not in text(records)


def test_optional_columns() -> None:
    records, extra = [make_record(controls=BLIND)], ["parameters", "throughput"]
    frame = table(records, extra=extra)
    assert frame["Encoder parameters (M)"][0] == 86.0
    assert frame["Training images/s"][0] == 12.5
    assert "86.0" in text(records, extra=extra)


def test_an_optional_column_that_the_record_lacks_is_a_dash() -> None:
    record = make_record().model_copy(update={"training": {}})
    assert "| – |" in text([record], extra=["throughput"])


def test_an_unknown_column_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'parameters'"):
        table([make_record()], extra=["paramters"])


HOSTILE = "<script>alert(1)</script> | a_b & 50% $x$ \\cmd{} `c` *d* #e\nf"


def hostile(ending: str) -> str:
    facts = encoder_facts("x").model_copy(update={"display_name": HOSTILE})
    return text([make_record(facts=facts)], ending)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_escapes_and_needs_nothing_from_outside() -> None:
    page = hostile("html")
    parser = _Tags()
    parser.feed(page)
    assert "script" not in parser.tags
    assert "<script>alert(1)</script> | a_b" in parser.text
    assert "http" not in page


def test_markdown_keeps_hostile_text_in_its_cell() -> None:
    lines = hostile("md").splitlines()
    header = next(line for line in lines if line.startswith("| Mode"))
    row = next(line for line in lines if "alert" in line)
    assert "<script" not in row
    assert row.replace("\\|", "").count("|") == header.count("|")


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_escaped_markdown_opens_no_tag_and_no_cell(raw: str) -> None:
    escaped = escape_markdown(raw)
    assert "<" not in escaped
    assert "\n" not in escaped
    assert "|" not in escaped.replace("\\|", "")


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=40))
@settings(max_examples=60, deadline=None)
def test_escaped_latex_has_balanced_braces_and_no_bare_special(raw: str) -> None:
    escaped = escape_latex(raw)
    for pair in ("\\{", "\\}", "\\&", "\\%", "\\$", "\\#", "\\_"):
        escaped = escaped.replace(pair, "")
    assert escaped.count("{}") == escaped.count("{") == escaped.count("}")
    assert not set("&%$#_~^<>|") & set(escaped)


def test_csv_and_json_hold_the_frame() -> None:
    records = [make_record(values=(50, None, 40, 80)), make_record("b", joint=True)]
    frame = table(records)
    read = pd.read_csv(io.StringIO(text(records, "csv")))
    assert list(read.columns) == list(frame.columns)
    assert read["VQA Acc"].tolist() == frame["VQA Acc"].tolist()
    rows = json.loads(text(records, "json"))
    assert rows[0]["CIDEr"] is None
    assert rows[1]["Joint Tuning"] is True
    assert rows[1]["VQA Acc n"] == 200


def test_latex_marks_best_and_second() -> None:
    records = [make_record(name, values=(value, 1, 1, 1)) for name, value in (("a", 9), ("b", 8))]
    latex = text(records, "tex")
    assert r"\textbf{9.0}" in latex
    assert r"\underline{8.0}" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1


def test_the_terminal_shows_every_score_and_footnote() -> None:
    console = Console(width=220, record=True, file=io.StringIO())
    print_table([make_record(values=(51.5, None, 40, 80), controls=BLIND)], console)
    printed = console.export_text()
    for expected in ("51.5 ±2.0", "n/a", "no Java found", "majority per question"):
        assert expected in printed


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_no_terminal_is_too_narrow_for_a_figure_or_a_name(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    record = make_record("dinov2-l", values=(51.5, 62.5, 43.5, 84.5), controls={"no-image": 30.0})
    print_table([record], console)
    printed = console.export_text().split("no image")[0]
    lifts = ("+21.5", "+32.5", "+13.5", "+54.5", "+30.5")
    for expected in ("51.5", "62.5", "43.5", "84.5", "60.5", "DINOV2-L", *lifts):
        assert expected in printed
    assert printed.count("±2.0") == 5
    assert "…" not in printed


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_no_word_is_split_and_no_column_vanishes_unannounced(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    records = [make_record("webssl-dino-7b", seed=seed, controls=BLIND) for seed in (0, 1)]
    page = table_page(build_tables([*records, make_record("b")], extra=["gflops"])[0])
    print_page(page, console)
    grid, _, notes = console.export_text().partition("Scores in percent")
    hidden = notes.replace("\n", " ").partition("Not shown at this width: ")[2]
    for place, column in enumerate(page.header):
        entries = [column, *(line.entries[place] for line in page.lines)]
        words = {word for entry in entries for word in entry.text.split()}
        assert column.text in hidden or words <= set(re.split(r"[\s┃│]+", grid)), column.text


def rewrite(results: Path) -> list[Path]:
    return write_tables(results, build_tables(require_records(results)))


def test_write_tables_is_deterministic_and_follows_the_records_alone(tmp_path: Path) -> None:
    records = [make_record(name, controls=BLIND) for name in ("a", "b")]
    random.Random(0).shuffle(records)
    for record in records:
        write_record(tmp_path, record)
    paths = rewrite(tmp_path)
    names = ["table.md", "table.csv", "table.tex", "table.html", "table.json"]
    assert [path.name for path in paths] == names
    first = [path.read_bytes() for path in paths]
    (tmp_path / "table.md").write_text("edited by hand")
    assert [path.read_bytes() for path in rewrite(tmp_path)] == first
    (tmp_path / "records" / f"{records[0].run_id}.json").unlink()
    rewrite(tmp_path)
    assert records[0].run_id not in (tmp_path / "table.csv").read_text()


def test_no_records_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no run records yet"):
        rewrite(tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = write_record(tmp_path, make_record())
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(RecordError, match=path.name):
        rewrite(tmp_path)


def test_load_results_holds_every_score_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_record(tmp_path, make_record(name, controls=BLIND, values=(50, None, 40, 80)))
    frame = load_results(tmp_path)
    assert len(frame) == 2 * (len(COLUMNS) * (1 + len(BLIND)) + 1)
    own = frame.query("primary and control == '' and encoder == 'A'").set_index("column")["value"]
    assert own["VQA Acc"] == 50.0
    assert pd.isna(own["CIDEr"])
    assert (
        frame.query("metric == 'cider' and control == ''")["reason"].tolist()
        == ["no Java found"] * 2
    )


def test_load_results_of_nothing_has_the_columns(tmp_path: Path) -> None:
    frame = load_results(tmp_path)
    assert len(frame) == 0
    assert "value" in frame.columns
