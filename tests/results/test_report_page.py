"""The report: what it holds, that it escapes, that charts are well-formed."""

from __future__ import annotations

import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_builders import draw_pictures, make_results, make_run
from result_builders import encoder_facts, make_record

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import read_records, write_record
from encoder_bench.results.report import page
from encoder_bench.results.report.charts import (
    Point,
    change_chart,
    cost_chart,
    curve_chart,
    error_chart,
    frontier,
    keep_apart,
    score_chart,
)
from encoder_bench.results.report.content import chapters
from encoder_bench.results.report.page import write_figures, write_report
from encoder_bench.results.score import bounds


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            name = self.tags[-1][1].get("id")
            self.scripts[name] = self.scripts.get(name, "") + data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts["sample-data"])

    @property
    def charts(self) -> list[dict[str, Any]]:
        return list(json.loads(self.scripts["chart-data"])["specs"])


def parse(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_a_page_of_two_encoders_has_every_chapter_in_order(tmp_path: Path) -> None:
    make_results(tmp_path, encoders=("dino", "clip"), count=12)
    pictures = draw_pictures(tmp_path / "pictures", 6)
    path = write_report(
        tmp_path, images=pictures, verdict=[("", ["Choose CLIP & <b>tune</b> it."])]
    )
    text = path.read_text(encoding="utf-8")
    headings = (
        "<h1>2 visual encoders in a multimodal LLM, frozen and jointly tuned</h1>",
        "Choose CLIP &amp; &lt;b&gt;tune&lt;/b&gt; it.",
        'aria-label="Comparison table 1"',
        "Scores with 95% intervals",
        "Frozen to joint",
        "Score against cost",
        "Where the errors are",
        "<h2>Samples</h2>",
        "<h2>Details</h2>",
        "Training curves",
        "relative change",
        "Task recipe vqa",
    )
    places = [text.index(heading) for heading in headings]
    assert places == sorted(places)
    assert text.count("&#34;description&#34;: &#34;a recipe&#34;") == 2  # frozen and joint, once
    assert "Verdict" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_every_chart_is_valid_and_drawn_once(tmp_path: Path) -> None:
    make_results(tmp_path, encoders=("dino", "clip"), count=12)
    page = parse(write_report(tmp_path))
    drawn = [int(str(a["data-chart"])) for _, a in page.tags if "data-chart" in a]
    assert drawn == list(range(len(page.charts)))
    names = [spec["description"] for spec in page.charts]
    assert len(set(names)) == len(names)
    assert {"Avg with 95% intervals", "OC Acc, frozen to joint", "VQA Acc by count"} <= set(names)
    (chapter,) = chapters(read_records(tmp_path))
    for chart in itertools.chain.from_iterable(chapter.charts.values()):
        chart.to_dict()  # against the schema of Vega-Lite


def test_nothing_on_the_page_points_outside_it(tmp_path: Path) -> None:
    make_results(tmp_path, encoders=("dino",), count=6)
    page = parse(write_report(tmp_path, images=draw_pictures(tmp_path / "pictures", 3)))
    links = [attrs[name] for _, attrs in page.tags for name in ("src", "href") if name in attrs]
    assert all(link is not None and link.startswith("#") for link in links)
    policy = [a["content"] for tag, a in page.tags if "http-equiv" in a and tag == "meta"]
    assert policy
    assert "default-src 'none'" in str(policy[0])


def test_samples_lie_beside_each_other_with_their_pictures(tmp_path: Path) -> None:
    make_results(tmp_path, encoders=("dino", "clip"), count=8)
    page = parse(write_report(tmp_path, images=draw_pictures(tmp_path / "pictures", 3)))
    data = page.data
    runs = data["tables"][0]["runs"]
    assert sorted(runs) == [
        f"{name}, seed 0" for name in ("CLIP, frozen", "CLIP, joint", "DINO, frozen", "DINO, joint")
    ]
    first, second = runs[0], runs[data["tables"][0]["second"]]
    assert first.partition(",")[0] != second.partition(",")[0]
    samples = data["tables"][0]["tasks"]["vqa"]
    assert len(samples) == 8
    assert all(len(sample["answers"]) == 4 for sample in samples)
    assert sorted(data["images"]) == ["0", "1", "2"]
    assert data["images"]["0"].startswith("data:image/png;base64,")


def test_the_number_of_samples_is_bounded_and_always_the_same(tmp_path: Path) -> None:
    make_results(tmp_path, encoders=("dino",), count=30)
    first = write_report(tmp_path, samples_per_task=5).read_bytes()
    assert write_report(tmp_path, samples_per_task=5).read_bytes() == first
    data = parse(tmp_path / "report.html").data
    assert len(data["tables"][0]["tasks"]["oc"]) == 5


def test_hostile_names_and_answers_stay_text(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    record = make_run(tmp_path, "dino", joint=False, skill=0.5, count=4)
    facts = record.encoder.model_copy(update={"display_name": hostile})
    (tmp_path / "records" / f"{record.run_id}.json").unlink()
    write_record(
        tmp_path,
        record.model_copy(update={"encoder": facts, "command": hostile, "warnings": (hostile,)}),
    )
    page = parse(write_report(tmp_path))
    assert sum(tag == "script" for tag, _ in page.tags) == 4
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert page.data["tables"][0]["runs"] == [f"{hostile}, frozen, seed 0"]


def test_damaged_predictions_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    record = make_run(tmp_path, "dino", joint=False, skill=0.5, count=4)
    path = tmp_path / "predictions" / record.run_id / "vqa.jsonl"
    path.write_text(path.read_text() + "{half")
    page = parse(write_report(tmp_path))
    assert "vqa" not in page.data["tables"][0]["tasks"]
    assert "edited or damaged" in (tmp_path / "report.html").read_text()


def test_records_without_predictions_make_a_page_without_samples(tmp_path: Path) -> None:
    write_record(tmp_path, make_record(facts=encoder_facts("dino")))
    text = write_report(tmp_path, output=tmp_path / "other.html").read_text()
    assert 'id="samples"' not in text
    assert "4 of 4 files are not in" in text


def test_no_records_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no run records yet"):
        write_report(tmp_path)


def test_a_chart_without_data_is_none() -> None:
    alone = Point("A", 0, False, 50.0, 1.0, at=1.0)
    assert change_chart("VQA Acc", [alone]) is None
    assert cost_chart("t", "s", [alone]) is None
    assert curve_chart("t", [(alone, [])]) is None
    assert error_chart("t", [Point("A", 0, False, 1.0, at="only")], {"only": "only"}) is None


def test_an_interval_ends_where_no_accuracy_can_be(tmp_path: Path) -> None:
    for seed, skill in enumerate((0.9, 1.0, 1.0)):
        make_run(tmp_path, "dino", joint=False, skill=skill, count=20, seed=seed)
    (chapter,) = chapters(read_records(tmp_path))
    ends = {}
    for chart in chapter.charts["scores"]:
        (high,) = re.findall(r'"high": ([\d.]+)', json.dumps(chart.to_dict(validate=False)))
        ends[chart.title] = float(high)
    assert ends["OC Acc"] == 100.0
    assert bounds(read_records(tmp_path), "CIDEr")[1] == math.inf


def costed(*costs: float) -> list[Point]:
    return [Point(f"E{n}", n, False, 50.0 + n, 1.0, at=cost) for n, cost in enumerate(costs)]


def test_costs_that_do_not_differ_make_no_chart_and_far_ones_a_log_axis(tmp_path: Path) -> None:
    assert cost_chart("t", "s", costed(1.29, 1.30)) is None
    scales = []
    for costs in ((1.0, 9.0), (1.0, 10.0)):
        chart = cost_chart("t", "s", costed(*costs))
        assert chart is not None
        scales.append(re.findall(r'"type": "(log|linear)"', json.dumps(chart.to_dict())))
    assert set(scales[0]) == {"linear"}
    assert set(scales[1]) == {"log"}
    write_record(tmp_path, make_record(facts=encoder_facts("dino")))
    write_record(tmp_path, make_record(facts=encoder_facts("clip")))
    (chapter,) = chapters(read_records(tmp_path))
    assert "Avg against encoder parameters (M): no chart, since all rows cost about 86." in (
        chapter.no_cost
    )


def test_a_table_without_avg_sets_its_own_scores_against_cost_and_bins_in_order(
    tmp_path: Path,
) -> None:
    """Two of four tasks, random weights beside the encoder, bins of one and of two digits."""
    bins = ["20+ objects", "1-9 objects", "10-19 objects", "none"]
    for name, gflops in (("dino", 4.0), ("random:dino", 4.0), ("clip", 8.0)):
        record = make_run(tmp_path, name, joint=False, skill=0.5, count=12)
        tasks = {task: record.tasks[task] for task in ("oc", "mci")}
        score = next(iter(tasks["oc"].breakdown["count"].values()))
        split = {"crowding": dict.fromkeys(bins, score)}
        tasks["oc"] = tasks["oc"].model_copy(update={"breakdown": split})
        encoder = record.encoder.model_copy(update={"gflops": gflops})
        update = {"encoder": encoder, "tasks": tasks}
        write_record(tmp_path, record.model_copy(update=update))
    (chapter,) = chapters(read_records(tmp_path))
    costs = [json.dumps(chart.to_dict()) for chart in chapter.charts["costs"]]
    assert [re.search(r"(\w+ Acc) against encoder GFLOPs", text)[1] for text in costs[:2]] == [
        "OC Acc", "MCI Acc",
    ]  # fmt: skip
    assert '"title": "OC Acc"' in costs[0]
    grids = [chart.to_dict() for chart in chapter.charts["errors"]]
    (order,) = {
        tuple(layer["encoding"]["x"]["sort"])
        for grid in grids
        for layer in grid["layer"]
        if "OC Acc" in json.dumps(grid["title"])
    }
    assert [heading.split("\n")[0] for heading in order] == [bins[1], bins[2], bins[0], bins[3]]
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<h1>2 visual encoders in a multimodal LLM, frozen</h1>" in page


def test_the_frontier_leaves_out_what_is_dearer_and_worse() -> None:
    points = [
        Point("cheap", 0, False, 50.0, at=1.0),
        Point("dear and worse", 1, False, 40.0, at=2.0),
        Point("dear and better", 2, False, 60.0, at=3.0),
        Point("as dear and worse", 2, True, 55.0, at=3.0),
    ]
    assert [point.label for point in frontier(points)] == ["cheap", "dear and better"]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 30)), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_no_interval_passes_its_axis(scores: list[tuple[float, float]]) -> None:
    points = [Point(f"E{n}", n, False, value, half) for n, (value, half) in enumerate(scores)]
    spec = score_chart("t", points, [point.label for point in points], 12.0).to_dict(validate=False)
    low, high = spec["layer"][-1]["encoding"]["x"]["scale"]["domain"]
    assert low < min(12.0, *(value - half for value, half in scores)) + 1e-3
    assert high > max(12.0, *(value + half for value, half in scores)) - 1e-3


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_labels_never_overlap_nor_fall_off(positions: list[float]) -> None:
    kept = keep_apart(positions, 13.0, 300.0)
    placed = sorted(kept)
    assert all(b - a >= 13.0 - 1e-6 for a, b in itertools.pairwise(placed))
    assert placed[-1] <= 300.0 + 1e-6
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    assert [kept[i] for i in order] == placed


def test_every_chart_is_a_file_of_its_own_with_its_colours(tmp_path: Path) -> None:
    make_results(tmp_path, encoders=("dino", "clip"), count=8)
    paths = write_figures(read_records(tmp_path), tmp_path / "figures")
    names = {path.name for path in paths}
    assert len(names) == len(paths) >= 36
    assert "table1-vqa-acc-frozen-to-joint.svg" in names
    for path in (path for path in paths if path.suffix == ".svg"):
        text = path.read_text()
        assert "var(" not in text
        root = ElementTree.fromstring(text)
        with Image.open(path.with_suffix(".png")) as picture:
            assert picture.width == pytest.approx(2 * float(root.attrib["width"]), abs=2)
            found = picture.convert("RGB").getcolors(1 << 20)
        assert found is not None
        drawn = {f"#{bytes(rgb).hex()}" for _, rgb in found}  # type: ignore[arg-type]
        series = {colour for colour in ("#0072b2", "#b34700") if colour in text}
        assert series <= drawn, f"{path.name}: a series lacks its colour"
        assert series or " by " in path.stem or "-by-" in path.stem
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_charts_of_columns_in_another_script_do_not_replace_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_results(tmp_path, encoders=("dino", "clip"), count=8)
    columns = {"vqa": "精度", "oc": "召回"}
    renamed = [
        record.model_copy(
            update={
                "tasks": {
                    name: record.tasks[name].model_copy(update={"column": column})
                    for name, column in columns.items()
                }
            }
        )
        for record in read_records(tmp_path)
    ]
    monkeypatch.setattr(page, "_WRITERS", {"svg": lambda _: b"<svg/>"})
    paths = write_figures(renamed, tmp_path / "figures")
    assert len({*paths}) == len(paths) > 2
