"""The report: what it holds, that it escapes, that charts are well-formed."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_builders import draw_pictures, make_results, make_run
from result_builders import encoder_facts, make_record

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import read_records, write_record
from encoder_bench.results.report import write_figures, write_report
from encoder_bench.results.report.charts import (
    Costed,
    Point,
    Series,
    curve_chart,
    pareto_chart,
    slope_chart,
)
from encoder_bench.results.report.svg import keep_apart, nice_ticks


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.data = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.stack.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == (
            "script",
            {"type": "application/json", "id": "sample-data"},
        ):
            self.data += data


def parse(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_a_page_of_two_encoders_has_every_chapter(tmp_path: Path) -> None:
    make_results(tmp_path, encoders=("dino", "clip"), count=12)
    pictures = draw_pictures(tmp_path / "pictures", 6)
    text = write_report(tmp_path, images=pictures).read_text(encoding="utf-8")
    for heading in (
        "Frozen against joint",
        "Scores with 95% intervals",
        "Score against cost",
        "Training loss",
        "VQA Acc by count",
        "Samples",
        "Runs and proofs",
        "relative change",
    ):
        assert heading in text
    for drawing in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(drawing)


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
    data = json.loads(page.data)
    assert data["tables"][0]["runs"] == [
        "CLIP, frozen", "DINO, frozen", "CLIP, joint", "DINO, joint",
    ]  # fmt: skip
    samples = data["tables"][0]["tasks"]["vqa"]
    assert len(samples) == 8
    assert all(len(sample["answers"]) == 4 for sample in samples)
    assert sorted(data["images"]) == ["0", "1", "2"]
    assert data["images"]["0"].startswith("data:image/png;base64,")


def test_the_number_of_samples_is_bounded_and_always_the_same(tmp_path: Path) -> None:
    make_results(tmp_path, encoders=("dino",), count=30)
    first = write_report(tmp_path, samples_per_task=5).read_bytes()
    assert write_report(tmp_path, samples_per_task=5).read_bytes() == first
    data = json.loads(parse(tmp_path / "report.html").data)
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
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert json.loads(page.data)["tables"][0]["runs"] == [f"{hostile}, frozen"]


def test_damaged_predictions_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    record = make_run(tmp_path, "dino", joint=False, skill=0.5, count=4)
    path = tmp_path / "predictions" / record.run_id / "vqa.jsonl"
    path.write_text(path.read_text() + "{half")
    page = parse(write_report(tmp_path))
    assert "vqa" not in json.loads(page.data)["tables"][0]["tasks"]
    assert "edited or damaged" in (tmp_path / "report.html").read_text()


def test_records_without_predictions_make_a_page_without_samples(tmp_path: Path) -> None:
    write_record(tmp_path, make_record(facts=encoder_facts("dino")))
    text = write_report(tmp_path, output=tmp_path / "other.html").read_text()
    assert 'id="samples"' not in text
    assert "predictions cannot be read" in text


def test_no_records_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no run records yet"):
        write_report(tmp_path)


def test_a_chart_without_data_is_none() -> None:
    alone = Series("A", 0, Point(50.0, 1.0), None)
    assert slope_chart("VQA Acc", [alone]) is None
    assert pareto_chart("t", "s", [Costed("A", 0, False, 1.0, Point(1.0))]) is None
    assert curve_chart("t", {}) is None


def test_the_frontier_leaves_out_what_is_dearer_and_worse() -> None:
    points = [
        Costed("cheap", 0, False, 1.0, Point(50.0)),
        Costed("dear and worse", 1, False, 2.0, Point(40.0)),
        Costed("dear and better", 2, False, 3.0, Point(60.0)),
    ]
    chart = pareto_chart("t", "s", points)
    assert chart is not None
    frontier = re.search(r'<polyline points="([^"]+)" fill="none" class="frontier"', chart)
    assert frontier is not None
    assert len(frontier.group(1).split()) == 2


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_labels_never_overlap_nor_fall_off(positions: list[float]) -> None:
    placed = sorted(keep_apart(positions, 13.0, lowest=300.0))
    assert all(b - a >= 13.0 - 1e-6 for a, b in itertools.pairwise(placed))
    assert placed[-1] <= 300.0 + 1e-6


@given(st.floats(-1000, 1000), st.floats(0.01, 1000))
@settings(max_examples=40, deadline=None)
def test_ticks_are_few_and_lie_within(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert 1 <= len(ticks) <= 9
    assert all(low - 1e-6 * span <= tick <= low + span + 1e-6 * span for tick in ticks)


def test_every_chart_is_a_file_of_its_own_with_its_colours(tmp_path: Path) -> None:
    make_results(tmp_path, encoders=("dino", "clip"), count=8)
    paths = write_figures(read_records(tmp_path), tmp_path / "figures")
    names = {path.name for path in paths}
    assert len(names) == len(paths) >= 24
    assert "table1-vqa-acc-frozen-against-joint.svg" in names
    for path in (path for path in paths if path.suffix == ".svg"):
        root = ElementTree.parse(path).getroot()
        style = root.find("{http://www.w3.org/2000/svg}style")
        assert style is not None
        assert "var(" not in str(style.text)
        assert "#" in str(style.text)
        with Image.open(path.with_suffix(".png")) as picture:
            assert picture.width == 2 * round(float(root.attrib["viewBox"].split()[2]))
            drawn = {f"#{bytes(rgb).hex()}" for _, rgb in picture.convert("RGB").getcolors(1 << 20)}
        rule = re.compile(r"\.s(\d)\.mark[^{]*{ fill: (#\w+)")
        colours = dict(rule.findall(str(style.text)))
        series = set(re.findall(r'class="s(\d)', path.read_text()))
        assert {colours[name] for name in series} & drawn, f"{path.name}: no series has its colour"
