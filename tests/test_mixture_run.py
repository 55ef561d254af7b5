"""Runs on mixtures: what a stage trains on, the identity, the record, and what a user sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from encoder_bench.base.errors import DataError, RecipeError, UnknownNameError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import load_adapter, recipe_names
from encoder_bench.base.record import read_records
from encoder_bench.cli.app import app
from encoder_bench.data.folder import open_data
from encoder_bench.gate.check import todays_plan
from encoder_bench.pipeline.build import load_run
from encoder_bench.pipeline.data import read_data
from encoder_bench.pipeline.plan import RunPlan, make_plan
from encoder_bench.pipeline.run import run
from encoder_bench.results.grouping import group_records
from tests.training import world

DATA = "scenes:5:24:2:6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    world.mixture(folder)
    weighted = (folder / "mixture.toml").read_text() + "max_rows = 4\n"
    (folder / "four.toml").write_text(weighted)
    return folder


def plan(folder: Path, results: Path, *mixture: str, **options: object) -> RunPlan:
    settings: dict[str, Any] = {"data": DATA, "steps": 2, "device": "cpu", "tasks": ["oc"]}
    settings |= {"settings": {"training.checkpoint_every": 1}, "training_data": str(folder)}
    names = [name if name == "none" else str(folder / f"{name}.toml") for name in mixture]
    return make_plan(results=results, mixture=names, **(settings | options))


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in their second stage's mixture."""
    results = tmp_path_factory.mktemp("results")
    for second in ("mixture", "four"):
        run(plan(folder, results, "mixture", second), QuietReporter())
    return results


def test_the_record_says_what_was_trained_on(results: Path, folder: Path) -> None:
    four, both = sorted(read_records(results), key=lambda r: len(r.training_data["mixtures"]))[::-1]
    assert both.training_data["name"] == "mixture"
    assert four.training_data["name"] == "mixture then four"
    assert four.training_data["folder"] == folder.name
    first, second = four.training_data["mixtures"]
    assert (first["name"], first["sources"]["m"]["used"]) == ("mixture", 8)
    assert (second["name"], second["sources"]["m"]["used"]) == ("four", 4)
    assert four.training["skipped_rows"] == four.training["cut_rows"] == 0
    assert four.training["steps"] == {"align": 2, "instruct": 2}
    assert str(folder) not in json.dumps(four.training_data)
    assert four.proof.reload_max_difference == 0.0
    assert load_run(results, four).language.max_length == 1024


def test_other_mixtures_are_other_runs_and_other_tables(results: Path, folder: Path) -> None:
    assert len(read_records(results)) == 2
    headings = [group.heading for group in group_records(read_records(results))]
    assert len(set(headings)) == 2
    assert any("trained on mixture then four" in heading for heading in headings)
    assert run(plan(folder, results, "mixture", "four"), QuietReporter()).found
    named = plan(folder, results, "mixture", "four").scoring_settings()
    assert named["mixtures"][0] != named["mixtures"][1]
    assert str(folder) not in json.dumps(named)


def test_the_gate_plans_a_recorded_run_again(results: Path, folder: Path) -> None:
    for record in read_records(results):
        stages = todays_plan(record, results=results).adapter.stages
        assert [s.mixture for s in stages] == [s["mixture"] for s in record.adapter["stages"]]


def test_one_for_all_stages_one_each_or_none(folder: Path, tmp_path: Path) -> None:
    one = plan(folder, tmp_path, "four")
    assert len({stage.mixture for stage in one.adapter.stages}) == len(one.mixtures) == 1
    assert one.training_recipes == {}
    second = plan(folder, tmp_path, "none", "four")
    assert [bool(stage.mixture) for stage in second.adapter.stages] == [False, True]
    assert set(second.training_recipes) == {"captioning", "vqa", "oc", "mci"}
    tasks = plan(folder, tmp_path, "none", adapter="llava")
    assert not tasks.mixtures
    assert tasks.training_recipes
    assert (
        tasks.scoring_settings()["adapter"]
        == plan(folder, tmp_path, "four", adapter="llava").scoring_settings()["adapter"]
    )


@pytest.mark.parametrize(
    ("mixture", "fault"),
    [
        (["four"] * 3, "names 3 mixtures, adapter 'quick' has 2 stages"),
        (["absent"], "absent.toml: no such recipe file"),
    ],
)
def test_what_is_named_wrongly_is_one_line(
    folder: Path, tmp_path: Path, mixture: list[str], fault: str
) -> None:
    with pytest.raises(RecipeError, match=fault):
        plan(folder, tmp_path, *mixture)


def test_unknown_names_and_stages_without_anything(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'llava-pretrain'"):
        make_plan(mixture=["llava-pretrian"])
    recipe = tmp_path / "a.toml"
    stage = '[[stages]]\nname = "s"\nimages_per_step = 1\nprojector = { learning_rate = 1 }\n'
    recipe.write_text(f'description = "d"\n{stage}')
    with pytest.raises(RecipeError, match="name at least one task, or a mixture"):
        make_plan(adapter=str(recipe))
    recipe.write_text(f'description = "d"\n{stage}mixture = "llava-pretrain"\n')
    assert set(make_plan(adapter=str(recipe)).mixtures) == {"llava-pretrain"}
    with pytest.raises(RecipeError, match=r"stage 's' of adapter .* names no tasks"):
        make_plan(adapter=str(recipe), mixture=["none"])


@pytest.mark.parametrize("adapter", ["llava", "prismatic"])
def test_absent_files_of_a_shipped_mixture_are_named_with_the_flag(
    adapter: str, tmp_path: Path
) -> None:
    chosen = make_plan(adapter=adapter, data=DATA, training_data=str(tmp_path), tasks=["oc"])
    with pytest.raises(DataError, match=r"llava.*(no folder|no file) .*--train-data") as caught:
        read_data(chosen, QuietReporter())
    assert str(tmp_path) in str(caught.value)


def test_every_mixture_that_a_shipped_adapter_names_is_shipped() -> None:
    named = {s.mixture for n in recipe_names("adapters") for s in load_adapter(n).stages}
    assert named - {None} == {"llava-pretrain", "llava-instruct"}


def test_a_dry_run_shows_the_mixture(folder: Path) -> None:
    command = ["run", "--dry-run", "--data", DATA, "--train-data", str(folder), "--tasks", "oc"]
    shown = CliRunner().invoke(app, [*command, "--mixture", f"none,{folder / 'four.toml'}"])
    assert shown.exit_code == 0
    assert "of 8 rows of mixture" in shown.stdout
    assert "m (rows.json)" in shown.stdout


def test_what_is_left_out_is_said_once_with_its_reason(folder: Path, tmp_path: Path) -> None:
    rows = json.loads((folder / "rows.json").read_text())
    rows[0]["image"] = "absent.png"
    rows[1]["conversations"][1]["value"] = " "
    (folder / "faulty.json").write_text(json.dumps(rows))
    toml = (folder / "mixture.toml").read_text().replace("rows.json", "faulty.json")
    (folder / "faulty.toml").write_text(toml)
    warned: list[str] = []
    reporter = QuietReporter()
    reporter.warn = warned.append  # type: ignore[method-assign]
    data = read_data(plan(folder, tmp_path, "faulty"), reporter)
    (line,) = warned
    assert line.startswith("mixture faulty: 6 of 8 rows of m are left: ")
    assert "1 missing image (the first is faulty.json: row 0: absent.png)" in line
    assert "faulty.json: row 1" in line
    (mixture,) = data.mixtures.values()
    assert len(mixture) == 6


def test_a_mixture_of_text_alone_compares_no_encoder(folder: Path, tmp_path: Path) -> None:
    rows = [row for row in json.loads((folder / "rows.json").read_text()) if "image" not in row]
    (folder / "text.json").write_text(json.dumps(rows))
    toml = (folder / "mixture.toml").read_text().replace("rows.json", "text.json")
    (folder / "text.toml").write_text(toml)
    with pytest.raises(DataError, match=r"text.toml: no row shows an image"):
        read_data(plan(folder, tmp_path, "text"), QuietReporter())
    read_data(plan(folder, tmp_path, "text", "mixture"), QuietReporter())


def test_rows_of_test_images_beyond_the_limit_are_left_out_too(
    folder: Path, tmp_path: Path
) -> None:
    tested = open_data(DATA).samples("oc", reader="gvtbench", source="coco_oc", split="test")
    rows = json.loads((folder / "rows.json").read_text())
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A test."}]
    for path in tested.image_paths():
        (folder / "images" / path.name).write_bytes(path.read_bytes())
        rows.append({"id": path.stem, "image": path.name, "conversations": turns})
    (folder / "leaking.json").write_text(json.dumps(rows))
    toml = (folder / "mixture.toml").read_text().replace("rows.json", "leaking.json")
    (folder / "leaking.toml").write_text(toml)
    for limit in (1, None):
        data = read_data(plan(folder, tmp_path, "leaking", limit=limit), QuietReporter())
        (mixture,) = data.mixtures.values()
        assert mixture.parts[0].about["overlap"]["rows"] == len(tested.image_paths())
        assert len(mixture) == len(rows) - len(tested.image_paths())
