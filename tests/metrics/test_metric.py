"""The table of metrics, and what follows from a metric's own direction and unit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.base.record import RunRecord, Score, TaskScores
from encoder_bench.metrics.metric import METRICS, find_metric, recorded_metric, runner_metrics
from encoder_bench.results.export import export_harness

sys.path.insert(0, str(Path(__file__).parents[1] / "results"))
from result_builders import make_record, table, write_predictions

ERRORS = ("counting_error", "counting_error_gvt", "counting_error@likelihood")
"""Counts of which the smaller is better."""


def scored(metric: str, value: float, sha256: str = "0" * 64) -> TaskScores:
    score = Score(value=value, low=value - 0.5, high=value + 0.5, samples=60, images=60)
    return TaskScores(
        primary=metric,
        column="Error",
        metrics={metric: score},
        predictions_file="oc.jsonl",
        predictions_sha256=sha256,
        definition={"prompt": "{question}", "runner": "counting"},
        metric_versions={metric: find_metric(metric).version},
    )


def run_with(folder: Path, metric: str, value: float, encoder: str = "dino") -> RunRecord:
    from encoder_bench.base.record import write_record

    draft = make_record(encoder, tasks={"oc": scored(metric, value)})
    answers = [
        {"sample_id": f"oc/{n}", "image_id": n, "prediction": "2", "scores": {metric: value}}
        for n in range(60)
    ]
    sha = write_predictions(folder / "predictions" / draft.run_id, "oc", answers)
    record = draft.model_copy(update={"tasks": {"oc": scored(metric, value, sha)}})
    write_record(folder, record)
    return record


def test_every_metric_is_in_the_table_under_its_name() -> None:
    for name, metric in METRICS.items():
        assert find_metric(name) is metric
        assert metric.name == name
        assert name in runner_metrics(metric.runner)


def test_a_likelihood_metric_has_the_properties_of_its_base() -> None:
    found = find_metric("counting_error@likelihood")
    assert found.name == "counting_error@likelihood"
    assert (found.higher_is_better, found.unit, found.version) == (False, "count", 5)


def test_an_unknown_metric_is_an_error_but_a_recorded_one_is_not() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'counting_accuracy'"):
        find_metric("counting_acuracy")
    gone = recorded_metric("somebodys_score")
    assert (gone.higher_is_better, gone.unit) == (None, "percent")
    assert "somebodys_score" in str(gone.measure(["x"], [["y"]]).reason)


@pytest.mark.parametrize("metric", ERRORS)
def test_errors_are_exported_as_counts_of_which_less_is_better(metric: str) -> None:
    found = export_harness(make_record(tasks={"oc": scored(metric, 9.0)}))
    assert found["results"]["oc"][f"{metric},none"] == 9.0
    assert found["higher_is_better"]["oc"][metric] is False


def test_a_rate_has_no_better_end(tmp_path: Path) -> None:
    records = [
        make_record(name, tasks={"oc": scored("yes_rate", value)})
        for name, value in (("dino", 40.0), ("clip", 60.0))
    ]
    assert export_harness(records[0])["higher_is_better"]["oc"]["yes_rate"] is None
    assert table(records)["Error rank"].isna().all()


@pytest.mark.parametrize("metric", ERRORS)
def test_the_smallest_error_is_the_best_of_its_mode(metric: str, tmp_path: Path) -> None:
    from encoder_bench.results.contrasts import best_ties

    records = [
        run_with(tmp_path, metric, value, name)
        for name, value in (("dino", 9.0), ("clip", 0.5), ("mae", 3.0))
    ]
    frame = table(records).set_index("Visual Encoder")
    ranks = frame["Error rank"]
    assert ranks["CLIP"] == 1
    assert ranks["MAE"] == 2
    assert ranks.isna()["DINO"]
    (ties,) = best_ties(tmp_path, records).values()
    assert ties == {"CLIP"}


@pytest.mark.parametrize("metric", ERRORS)
def test_the_gate_passes_an_error_that_falls_and_stops_one_that_rises(
    metric: str, tmp_path: Path
) -> None:
    from encoder_bench.gate.baseline import accept
    from encoder_bench.gate.check import check

    def outcome(before: float, after: float) -> list[str]:
        place = tmp_path / f"{before} {after}"
        accepted = run_with(place / "first", metric, before)
        accept(place / "baseline", place / "first", [accepted.run_id], reason="first figures")
        run_with(place / "fresh", metric, after)
        result = check(place / "baseline", place / "fresh")
        failures = [line for verdict in result.verdicts for line in verdict.failures]
        assert result.passed == (not failures)
        return failures

    assert outcome(9.0, 0.03) == []
    paired, margin = outcome(0.03, 9.0)
    assert paired.startswith(f"{metric} got worse by 8.97")
    assert margin.startswith(f"{metric} got worse, from 0.03 to 9.00")


def test_the_lift_of_an_error_is_over_the_smallest_blind_one() -> None:
    from encoder_bench.results.score import Source, lift

    blind = {
        name: {"counting_error": Score(value=value, samples=9, images=9)}
        for name, value in (("no-image", 5.0), ("constant", 2.0))
    }
    scores = scored("counting_error", 0.5).model_copy(update={"controls": blind})
    assert lift(Source("oc", scores, "counting_error")) == 1.5, "a smaller error is a gain"
