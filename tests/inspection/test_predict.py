"""What foretells trained scores: each measure on cases whose answer is known, and its worth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from encoder_bench import api
from encoder_bench.base.errors import DataError
from encoder_bench.base.record import write_record
from encoder_bench.cli.app import app
from encoder_bench.inspection.alignment import (
    alignment,
    correspondence,
    effective_rank,
    gromov_wasserstein,
)
from encoder_bench.inspection.predict import Forecast, worth
from encoder_bench.metrics.statistics import spearman_interval
from encoder_bench.results.runs import inventory

COMMITTED = Path(__file__).resolve().parents[2] / "results"
TINY = ("tiny-deit", "tiny-clip", "tiny-siglip", "tiny-mae", "tiny-dino", "tiny-dinov2")
rng = np.random.default_rng(0)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_equal_directions_is_their_number(rank):
    orthogonal, _ = np.linalg.qr(rng.normal(size=(20, rank)))
    assert effective_rank(5.0 * orthogonal) == pytest.approx(rank)


def test_a_score_is_one_for_a_linear_image_of_the_reference_and_low_for_noise():
    reference = torch.from_numpy(rng.normal(size=(40, 4, 6)))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    mixed = 2.0 * reference @ torch.from_numpy(rotation) + 3.0
    noise = torch.from_numpy(rng.normal(size=(40, 4, 6)))
    same = alignment(mixed[:30], reference[:30], mixed[30:], reference[30:])
    other = alignment(noise[:30], reference[:30], noise[30:], reference[30:])
    assert same > 0.99
    assert other < 0.7


def test_c_score_is_one_where_tokens_name_the_category_and_chance_where_they_do_not():
    covered = torch.zeros(12, 2, 9)
    for image in range(12):
        first, second = rng.permutation(9)[:2]
        covered[image, 0, first] = covered[image, 1, second] = 1.0
    telling = torch.cat([covered, 0.1 * torch.ones(12, 1, 9)], dim=1).transpose(1, 2)
    assert correspondence(telling, covered).share == 1.0
    found = correspondence(torch.from_numpy(rng.normal(size=(12, 9, 16))), covered)
    assert found.chance == pytest.approx(1 / 9)
    assert found.share == pytest.approx(found.chance, abs=0.1)
    assert correspondence(telling, covered, seed=1) == correspondence(telling, covered, seed=1)


def test_c_score_needs_two_images_of_a_category():
    covered = torch.eye(3)[:, :, None].expand(3, 3, 4)
    with pytest.raises(ValueError, match="no two images"):
        correspondence(torch.ones(3, 4, 2), covered)


def test_gw_distance_ignores_rotation_and_scale_and_sees_another_structure():
    points = rng.normal(size=(24, 5))
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    assert gromov_wasserstein(points, 3.0 * points @ rotation) == pytest.approx(0.0, abs=1e-6)
    # a circle and two tight clusters
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    clusters = np.repeat([[1.0, 0.0], [0.0, 1.0]], 12, axis=0)
    assert gromov_wasserstein(circle, clusters) > 0.2


def test_the_interval_of_a_rank_correlation_covers_at_its_rate():
    from scipy.stats import spearmanr

    generator, hits, drawn = np.random.default_rng(5), 0, 600
    true = 6 / np.pi * np.arcsin(0.6 / 2)  # of a normal pair whose correlation is 0.6
    for _ in range(drawn):
        one, noise = generator.normal(size=(2, 12))
        low, high = spearman_interval(spearmanr(one, 0.6 * one + 0.8 * noise).statistic, 12)
        hits += low <= true <= high
    assert 0.93 <= hits / drawn <= 0.99


@pytest.mark.parametrize("number", [4, 7, 30])
def test_a_perfect_order_has_an_interval_with_width(number):
    low, high = spearman_interval(1.0, number)
    assert low < high == 1.0
    assert spearman_interval(-1.0, number) == (-1.0, pytest.approx(-low))
    assert (low > 0) == (number > 5)  # four or five encoders establish nothing


def forecasts(values: dict[str, float]) -> list[Forecast]:
    return [
        Forecast(name, name, True, {"linear probe": value, "GW distance": -value})
        for name, value in values.items()
    ]


@pytest.fixture(scope="module")
def records():
    return inventory(COMMITTED)[0]


def test_a_score_in_the_order_of_the_trained_one_is_worth_one(records):
    from encoder_bench.results.table import build_tables

    (table,) = build_tables(records)
    trained = {
        row.runs.records[0].encoder.name: row.cells["Avg"].value
        for row in table.rows
        if row.runs is not None and row.joint is False and row.kind == "encoder"
    }
    found, heading = worth(forecasts(trained), records, joint=False)
    assert heading == table.heading
    by = {(each.predictor, each.column): each for each in found}
    for name in ("linear probe", "GW distance"):  # of the distance, less is better
        each = by[name, "Avg"]
        assert (each.correlation, each.encoders, each.without_one) == (1.0, 6, (1.0, 1.0))
        assert each.established
    wrong, _ = worth(forecasts({n: -v for n, v in trained.items()}), records, joint=False)
    assert {w.correlation for w in wrong if w.column == "Avg"} == {-1.0}


def test_of_an_error_less_is_better(records):
    oc = {
        name: {
            "oc": record.tasks["oc"].model_copy(
                update={"primary": "counting_error", "column": "OC Error"}
            )
        }
        for name, record in ((r.run_id, r) for r in records if not r.joint)
    }
    changed = [r.model_copy(update={"tasks": oc[r.run_id]}) for r in records if not r.joint]
    from encoder_bench.results.table import build_tables

    errors = {
        row.runs.records[0].encoder.name: row.cells["OC Error"].value
        for row in build_tables(changed)[0].rows
        if row.kind == "encoder"
    }
    found, _ = worth(forecasts({n: -v for n, v in errors.items()}), changed, joint=False)
    assert {each.correlation for each in found} == {1.0}


def test_three_encoders_are_too_few(records):
    with pytest.raises(DataError, match=r"3 of these encoders .* needs 4"):
        worth(forecasts(dict.fromkeys(TINY[:3], 1.0)), records, joint=False)


def test_the_command_ranks_encoders_and_says_what_is_not_established():
    arguments = ["predict", "--limit", "24", "--quiet", "--results", str(COMMITTED)]
    for name in ("tiny-clip", "tiny-deit", "tiny-mae", "tiny-dino"):
        arguments += ["-e", name]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert [each["encoder"] for each in content["encoders"]] == [
        "tiny-clip", "tiny-deit", "tiny-mae", "tiny-dino",
    ]  # fmt: skip
    assert all(len(each["scores"]) == 6 and not each["reasons"] for each in content["encoders"])
    assert content["encoders"][0]["scores"]["A-score"] == pytest.approx(1.0, abs=0.01)
    columns = {each["column"] for each in content["worth"]}
    assert {"VQA Acc", "CIDEr", "OC Acc", "MCI Acc", "Avg"} <= columns
    assert len(content["worth"]) == 6 * len(columns)
    assert not any(each["established"] for each in content["worth"])  # four encoders never are
    unknown = CliRunner().invoke(app, [*arguments, "--by", "Avgg"])
    assert "Avg" in str(unknown.exception)


def test_without_captions_and_results_it_says_what_is_missing(tmp_path):
    from encoder_bench.base.progress import QuietReporter
    from encoder_bench.data.folder import open_data

    scenes = open_data("scenes", QuietReporter()).root
    (tmp_path / "coco").mkdir()
    for name in ("train2017", "val2017"):
        (tmp_path / "coco" / name).symlink_to(scenes / "coco" / name)
    for name in ("instances_train2017.json", "instances_val2017.json"):
        file = next(scenes.rglob(name))
        (tmp_path / "coco" / name).write_bytes(file.read_bytes())
    result = CliRunner(env={"ENCODER_BENCH_FOLLOW_LINKS": "1"}).invoke(
        app,
        ["predict", "-e", "tiny-mae", "--data", str(tmp_path), "--limit", "12", "--quiet",
         "--results", str(tmp_path / "none")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "n/a: GW distance: the data has no captions of labelled test images" in result.output
    assert "n/a: A-score: no reference encoder (--reference)" in result.output
    assert "not known: 0 of these encoders have trained frozen results" in result.output


def test_without_avg_the_first_score_is_compared_with(records, tmp_path, monkeypatch):
    for record in records:
        if not record.joint:
            tasks = {name: record.tasks[name] for name in ("vqa", "oc")}
            write_record(tmp_path, record.model_copy(update={"tasks": tasks}))
    known = forecasts({name: float(n) for n, name in enumerate(TINY)})
    monkeypatch.setattr(api, "predict", lambda *_, **__: known)
    arguments = ["predict", "-e", "tiny-mae", "--results", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "VQA Acc" in result.output
    wrong = CliRunner().invoke(app, [*arguments, "--by", "Avg"])
    assert "Avg" in str(wrong.exception)
    assert "tiny-mae" in wrong.output, "the forecasts are printed all the same"
