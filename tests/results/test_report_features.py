"""Patch features in the report: drawn from the run's own encoder, or named with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_builders import draw_pictures
from result_builders import make_record

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.record import RunRecord, write_record
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.inspection.features import PHOTOS, seen_features
from encoder_bench.results.report.page import write_report
from encoder_bench.results.thumbnails import sample_pictures


def tiny_record(*, joint: bool = False, fingerprint: str | None = None) -> RunRecord:
    encoder = load_encoder("tiny-mae")
    record = make_record("tiny-mae", joint=joint)
    facts = record.encoder.model_copy(
        update={"fingerprint": fingerprint or encoder.fingerprint(), "display_name": "<b>MAE</b>"}
    )
    adapter = {**record.adapter, "encoder": {"trainable": joint, "layer": [-1]}}
    return record.model_copy(update={"encoder": facts, "adapter": adapter})


def test_a_frozen_row_shows_its_encoder_on_the_same_photos(tmp_path: Path) -> None:
    record = tiny_record()
    write_record(tmp_path, record)
    pictures = draw_pictures(tmp_path / "pictures", 6)
    found = seen_features(tmp_path, [record], pictures, QuietReporter(), device="cpu")
    (seen,) = found.values()
    photos, view = seen.columns
    assert (len(photos.pictures), len(view.pictures)) == (PHOTOS, PHOTOS)
    assert view.patches
    assert "of variance" in view.note
    text = write_report(tmp_path, images=pictures, features=found).read_text()
    assert "What the encoders see" in text
    assert "<b>MAE</b>" not in text
    assert len(re.findall(r'class="patches" src="data:image/png;base64,', text)) == PHOTOS


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (tiny_record(joint=True), "the trained weights of run"),
        (tiny_record(fingerprint="0" * 64), "weights found now are not those"),
    ],
    ids=["tuned weights are gone", "other weights"],
)
def test_an_encoder_that_cannot_be_shown_is_named(
    tmp_path: Path, record: RunRecord, reason: str
) -> None:
    pictures = draw_pictures(tmp_path / "pictures", 2)
    (seen,) = seen_features(tmp_path, [record], pictures, QuietReporter(), device="cpu").values()
    assert [column.title for column in seen.columns] == ["photo"]
    assert reason in seen.missing[0]


def test_without_pictures_nothing_is_loaded(tmp_path: Path) -> None:
    assert seen_features(tmp_path, [tiny_record()], {}, QuietReporter()) == {}


def test_pictures_are_of_the_runs_own_data(tmp_path: Path) -> None:
    def run(data: str, reader: str = "gvtbench", source: str = "coco_oc") -> RunRecord:
        record = make_record(data=data)
        definition = {"reader": reader, "source": source}
        tasks = {"oc": record.tasks["oc"].model_copy(update={"definition": definition})}
        return record.model_copy(update={"tasks": tasks})

    one, other = "scenes:5:8:2:4", "scenes:6:8:2:4"
    alone = sample_pictures(None, [run(one)])
    assert alone
    assert not sample_pictures(None, [run(one), run(other)]), "one id, two drawings"
    assert not sample_pictures(one, [run(other)])
    folder = str(next(iter(alone.values())).parents[2])
    photos = run("photos")
    assert sample_pictures(folder, [photos, run(one), run("photos", "pope", "all")]) == alone
    with pytest.raises(DataError, match="pope"):
        sample_pictures(folder, [run("photos", "pope", "all")])
