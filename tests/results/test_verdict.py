"""The verdict: a best row, ties, the cheapest nearby, joint gains, what is not established."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_builders import make_run
from result_builders import make_record
from typer.testing import CliRunner

from encoder_bench.base.errors import RecordError, UnknownNameError
from encoder_bench.base.record import read_records, write_record
from encoder_bench.cli.app import app
from encoder_bench.results.contrasts import JOINT, contrasts
from encoder_bench.results.verdict import recommend, verdict_sentences


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seeds of a good, an equal and a poor encoder; the poor one gains by joint tuning."""
    folder = tmp_path_factory.mktemp("results")
    skills = {("best", False): 0.95, ("equal", False): 0.95, ("poor", False): 0.1,
              ("poor", True): 0.9}  # fmt: skip
    for (name, joint), skill in skills.items():
        for seed in range(5):
            record = make_run(folder, name, joint=joint, skill=skill, count=60, seed=seed)
            cost = record.encoder.model_copy(update={"gflops": 2.0 if name == "equal" else 8.0})
            write_record(folder, record.model_copy(update={"encoder": cost}))
    return folder


def test_a_clear_loser_is_worse_and_an_equal_ties(results: Path) -> None:
    (verdict,) = recommend(results, read_records(results))
    choice = verdict.choice
    assert choice.by == "Avg"
    assert {choice.best, *choice.tied} >= {"BEST (frozen)", "EQUAL (frozen)"}
    assert choice.worse[-1] == "POOR (frozen)"
    assert [each.by for each in verdict.by_task] == ["VQA Acc", "CIDEr", "OC Acc", "MCI Acc"]
    tasks = [each.score for each in verdict.by_task]
    assert choice.score <= np.mean(tasks) + 1e-9
    assert {(gain.encoder, gain.difference.value > 20) for gain in verdict.gains} == {
        ("POOR", True)
    }
    text = " ".join(verdict.sentences())
    assert "Joint tuning helps POOR by +" in text
    assert "Tied with" in text
    assert "One seed" not in text


def test_the_cheapest_within_a_point_is_named(results: Path) -> None:
    (verdict,) = recommend(results, read_records(results), tasks=["oc"])
    assert verdict.choice.by == "OC Acc"
    near = [*verdict.choice.tied, verdict.choice.best]
    assert verdict.cheapest is not None
    assert verdict.cheapest.partition(",")[0] in near


def test_random_weights_are_no_choice_but_named_where_they_are_not_beaten(tmp_path: Path) -> None:
    for name, skill in (("good", 0.9), ("random:good", 0.9), ("random:poor", 0.1)):
        for seed in range(3):
            make_run(tmp_path, name, joint=False, skill=skill, count=60, seed=seed)
    (verdict,) = recommend(tmp_path, read_records(tmp_path))
    choice = verdict.choice
    assert choice.best == "GOOD (frozen)"
    assert (choice.tied, choice.worse) == ((), ())
    (unbeaten,) = choice.unbeaten
    assert unbeaten == "RANDOM:GOOD (frozen)"
    assert (
        f"the only row. GOOD (frozen) is not significantly above {unbeaten}."
        in (verdict.sentences()[0])
    )
    for record in read_records(tmp_path):
        if record.encoder.pretrained:
            (tmp_path / "records" / f"{record.run_id}.json").unlink()
    (alone,) = recommend(tmp_path, read_records(tmp_path))
    assert alone.choice.best == unbeaten


def test_the_best_is_tested_against_its_own_twin_and_random_rows_above_it(tmp_path: Path) -> None:
    found = []
    for other in (0.88, 0.97):
        folder = tmp_path / str(other)
        for name, skill in (("good", 0.9), ("random:good", 0.1), ("random:other", other)):
            for seed in range(3):
                make_run(folder, name, joint=False, skill=skill, count=60, seed=seed)
        (verdict,) = recommend(folder, read_records(folder))
        found.append(verdict.choice.unbeaten)
    assert found == [(), ("RANDOM:OTHER (frozen)",)]


def test_costly_encoders_are_left_out(results: Path) -> None:
    (verdict,) = recommend(results, read_records(results), max_gflops=3.0)
    assert verdict.choice.sentence().endswith("the only row.")
    assert verdict.cheapest == "EQUAL (frozen), 2 GFLOPs"
    assert not verdict.gains
    with pytest.raises(RecordError, match="at most 1 GFLOPs; the least is 2"):
        recommend(results, read_records(results), max_gflops=1.0)


def test_what_is_not_established_is_called_so(tmp_path: Path) -> None:
    for name in ("a", "bb"):
        make_run(tmp_path, name, joint=False, skill=0.6, count=20)
        make_run(tmp_path, name, joint=True, skill=0.6, count=20)
    ((heading, sentences),) = verdict_sentences(tmp_path, read_records(tmp_path))
    assert not heading
    text = " ".join(sentences)
    assert "that it is best is not established" in text
    assert "not established for any encoder on any task" in text
    assert "the variance of seeds is not known" in text


def test_without_predictions_there_is_no_verdict_and_a_reason(tmp_path: Path) -> None:
    ((_, (line,)),) = verdict_sentences(tmp_path, [make_record("a"), make_record("b")])
    assert line.startswith("No verdict: ")
    assert "not there; keep a run's predictions" in line


def test_the_command_prints_and_gives_json(results: Path) -> None:
    command = ["recommend", "--results", str(results)]
    printed = CliRunner().invoke(app, command)
    assert printed.exit_code == 0, printed.output
    assert "Choose by Avg: " in printed.output
    found = json.loads(CliRunner().invoke(app, [*command, "--tasks", "oc,mci", "--json"]).stdout)
    assert found[0]["choice"]["by"] == "OC Acc + MCI Acc"
    assert found[0]["gains"][0]["difference"]["low"] is not None
    unknown = CliRunner().invoke(app, [*command, "--tasks", "occ"])
    assert isinstance(unknown.exception, UnknownNameError)


def test_random_twins_take_no_part_in_the_tests_of_pretrained_encoders(tmp_path: Path) -> None:
    for name, joint, skill in (
        ("good", False, 0.9), ("good", True, 0.5), ("random:good", False, 0.2),
        ("random:good", True, 0.9),
    ):  # fmt: skip
        for seed in range(3):
            make_run(tmp_path, name, joint=joint, skill=skill, count=60, seed=seed)
    alone = tmp_path / "alone"
    for record in read_records(tmp_path):
        if record.encoder.pretrained:
            write_record(alone, record)
    (alone / "predictions").symlink_to(tmp_path / "predictions")
    (verdict,) = recommend(tmp_path, read_records(tmp_path))
    (without,) = recommend(alone, read_records(alone))
    assert {gain.encoder for gain in verdict.gains} == {"GOOD"}
    assert verdict.gains == without.gains
    assert (verdict.choice.tied, verdict.choice.worse) == (
        without.choice.tied,
        without.choice.worse,
    )
    assert "RANDOM:GOOD (joint)" in verdict.choice.unbeaten


def test_a_row_without_a_score_is_named_and_not_chosen_by_default(tmp_path: Path) -> None:
    for name, skill in (("good", 0.9), ("poor", 0.2)):
        make_run(tmp_path, name, joint=False, skill=skill)
    partial = make_run(tmp_path, "more", joint=False, skill=0.5)
    kept = {name: partial.tasks[name] for name in ("vqa", "oc")}
    write_record(tmp_path, partial.model_copy(update={"tasks": kept}))
    (verdict,) = recommend(tmp_path, read_records(tmp_path))
    assert (verdict.choice.by, verdict.choice.best) == ("Avg", "GOOD (frozen)")
    assert verdict.left_out == ("MORE (frozen)",)
    assert "Left out, without all of these scores: MORE (frozen)." in verdict.sentences()


def test_a_row_left_out_by_the_mean_is_compared_by_the_scores_that_it_has(tmp_path: Path) -> None:
    for name, skill in (("good", 0.5), ("poor", 0.2)):
        make_run(tmp_path, name, joint=False, skill=skill, count=60)
    partial = make_run(tmp_path, "more", joint=False, skill=0.95, count=60)
    kept = {name: partial.tasks[name] for name in ("vqa", "oc")}
    write_record(tmp_path, partial.model_copy(update={"tasks": kept}))
    (verdict,) = recommend(tmp_path, read_records(tmp_path))
    assert verdict.choice.best == "GOOD (frozen)"
    best = {each.by: each.best for each in verdict.by_task}
    assert (best["OC Acc"], best["MCI Acc"]) == ("MORE (frozen)", "GOOD (frozen)")
    shutil.rmtree(tmp_path / "predictions" / partial.run_id)
    (without,) = recommend(tmp_path, read_records(tmp_path))
    assert (without.choice.best, without.left_out) == ("GOOD (frozen)", ("MORE (frozen)",))


def test_rows_of_one_seed_beside_others_are_named(tmp_path: Path) -> None:
    for name, seeds in (("a", 3), ("b", 1)):
        for seed in range(seeds):
            make_run(tmp_path, name, joint=False, skill=0.6, count=20, seed=seed)
    (verdict,) = recommend(tmp_path, read_records(tmp_path))
    said = "One seed of B (frozen): the variance of seeds is not known and not counted."
    assert said in verdict.sentences()


def test_of_equally_cheap_rows_the_better_is_the_cheapest(tmp_path: Path) -> None:
    for joint in (False, True):
        for seed in range(2):
            record = make_run(tmp_path, "a", joint=joint, skill=0.9, count=60, seed=seed)
            cost = record.encoder.model_copy(update={"gflops": 2.0})
            write_record(tmp_path, record.model_copy(update={"encoder": cost}))
    (verdict,) = recommend(tmp_path, read_records(tmp_path))
    assert verdict.choice.best == "A (joint)", "by a fifth of a point, so that both are near"
    assert verdict.cheapest == "A (joint), 2 GFLOPs"


def test_a_task_more_in_one_run_leaves_the_others_in(tmp_path: Path) -> None:
    for name, skill, tasks in (("a", 0.9, 2), ("b", 0.8, 2), ("c", 0.1, 3)):
        record = make_run(tmp_path, name, joint=False, skill=skill)
        chosen = dict([*record.tasks.items()][:tasks])
        write_record(tmp_path, record.model_copy(update={"tasks": chosen}))
    (verdict,) = recommend(tmp_path, read_records(tmp_path))
    assert {verdict.choice.best, *verdict.choice.tied, *verdict.choice.worse} == {
        "A (frozen)", "B (frozen)", "C (frozen)",
    }  # fmt: skip
    assert not verdict.left_out


def test_joint_tuning_is_compared_with_the_same_layer_frozen(tmp_path: Path) -> None:
    for layer, joint, skill in ((-1, False, 0.2), (-2, True, 0.9)):
        record = make_run(tmp_path, "dino", joint=joint, skill=skill)
        adapter = record.adapter | {"encoder": record.adapter["encoder"] | {"layer": [layer]}}
        facts = record.encoder.model_copy(update={"layer": (layer,), "fingerprint": f"{layer}"})
        write_record(tmp_path, record.model_copy(update={"adapter": adapter, "encoder": facts}))
    records = read_records(tmp_path)
    (verdict,) = recommend(tmp_path, records)
    assert not verdict.gains
    assert not [each for each in contrasts(tmp_path, records) if each.family == JOINT]
