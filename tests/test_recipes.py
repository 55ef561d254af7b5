"""Recipes: every shipped one parses; a wrong key or value is one clear line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from encoder_bench.base.errors import RecipeError, UnknownNameError
from encoder_bench.base.recipes import (
    AdapterRecipe,
    MixtureRecipe,
    SourceSettings,
    TaskRecipe,
    load_adapter,
    load_mixture,
    load_task,
    recipe_folder,
    recipe_names,
    recorded_adapter,
    scoring_settings,
)
from encoder_bench.base.record import RunRecord, read_records
from encoder_bench.pipeline.plan import RunPlan, make_plan
from encoder_bench.results.grouping import group_records
from encoder_bench.training.trainer import training_identity

_RECORDS = Path(__file__).resolve().parents[1] / "results" / "records"

MINIMAL = """
description = "smallest"
[[stages]]
name = "only"
tasks = ["vqa"]
steps = 3
images_per_step = 2
projector = { learning_rate = 1e-3 }
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("name", recipe_names("adapters"))
def test_every_shipped_adapter_parses(name: str) -> None:
    assert load_adapter(name).description


@pytest.mark.parametrize("name", recipe_names("tasks"))
def test_every_shipped_task_parses(name: str) -> None:
    recipe = load_task(name)
    assert recipe.primary in recipe.metrics


@pytest.mark.parametrize("name", recipe_names("mixtures"))
def test_every_shipped_mixture_parses(name: str) -> None:
    assert load_mixture(name).description


def test_the_readme_of_mixtures_lists_every_key() -> None:
    text = (recipe_folder("mixtures") / "README.md").read_text(encoding="utf-8")
    keys = {*MixtureRecipe.model_fields, *SourceSettings.model_fields} - {"sources"}
    assert {key for key in keys if f"`{key}`" not in text} == set()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "give 'path', or 'hub'"),
        ('path = "a"\nhub = "b/c"', "give 'path', or 'hub'"),
        ('hub = "b/c"', "'hub' needs format"),
        ('path = "a"\nweight = 2\nmax_rows = 3', "not both"),
        ('path = "a"\nweight = 0', "greater than 0"),
        ('path = "a"\nstreaming = true', "'streaming' needs"),
        ('path = "a"\ntasks = ["vqa"]', "'tasks' are those"),
        ('path = "a"\nimgaes = "b"', r"sources\.0: unknown key 'imgaes'; did you mean 'images'"),
        ('path = "a"\n[[sources]]\nname = "s"\nformat = "llava"\npath = "a"', "the name 's'"),
    ],
)
def test_sources_say_what_does_not_fit(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(f'description = "d"\n[[sources]]\nname = "s"\nformat = "llava"\n{line}\n')
    with pytest.raises(RecipeError, match=said):
        load_mixture(str(path))


def test_the_recipes_that_the_manual_names_are_shipped() -> None:
    assert {"quick", "laptop", "gvt", "llava"} <= set(recipe_names("adapters"))
    assert {"vqa", "captioning", "oc", "mci"} <= set(recipe_names("tasks"))


def test_unknown_key_names_file_and_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "typo.toml"
    path.write_text(MINIMAL.replace("images_per_step", "images_per_stp"))
    with pytest.raises(RecipeError) as error:
        load_adapter(str(path))
    assert str(path) in str(error.value)
    assert "did you mean 'images_per_step'" in str(error.value)


def test_unknown_nested_key_names_its_table(tmp_path: Path) -> None:
    path = tmp_path / "typo.toml"
    path.write_text(MINIMAL + "[projector]\nnmae = 'mlp'\n")
    with pytest.raises(RecipeError, match=r"projector: unknown key 'nmae'; did you mean 'name'"):
        load_adapter(str(path))


def test_broken_toml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("description = ")
    with pytest.raises(RecipeError, match=r"broken\.toml: not valid TOML"):
        load_adapter(str(path))


def test_missing_file_and_unknown_name() -> None:
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_adapter("nowhere/at/all.toml")
    with pytest.raises(UnknownNameError, match="did you mean 'quick'"):
        load_adapter("quik")


def test_override_reaches_a_nested_key_and_none_is_passed_over(minimal: Path) -> None:
    recipe = load_adapter(str(minimal), {"projector.visual_tokens": 5, "projector.name": None})
    assert recipe.projector.visual_tokens == 5
    assert recipe.projector.name == "mlp"


def test_override_is_validated_like_the_file(minimal: Path) -> None:
    with pytest.raises(RecipeError, match=r"projector\.visual_tokens"):
        load_adapter(str(minimal), {"projector.visual_tokens": -1})
    with pytest.raises(
        RecipeError, match=r"with projector\.visual_token set: .*unknown key 'visual_t"
    ):
        load_adapter(str(minimal), {"projector.visual_token": 4})
    with pytest.raises(RecipeError, match="'description' is not a table"):
        load_adapter(str(minimal), {"description.x": 4})


def test_override_reaches_a_stage_by_its_name(minimal: Path) -> None:
    two = minimal.read_text() + minimal.read_text()[minimal.read_text().index("[[stages]]") :]
    name = load_adapter(str(minimal)).stages[0].name
    recipe = load_adapter(
        str(minimal), {f"stages.{name}.projector.learning_rate": 5e-4, f"stages.{name}.steps": 7}
    )
    assert (recipe.stages[0].projector.learning_rate, recipe.stages[0].steps) == (5e-4, 7)
    with pytest.raises(RecipeError, match=r"'stages\.nope\.steps': unknown name 'nope'.*" + name):
        load_adapter(str(minimal), {"stages.nope.steps": 7})
    with pytest.raises(RecipeError, match="name one of 'stages' before it"):
        load_adapter(str(minimal), {"stages.steps": 7})
    with pytest.raises(RecipeError, match="unknown key 'stpes'; did you mean 'steps'"):
        load_adapter(str(minimal), {f"stages.{name}.stpes": 7})
    minimal.write_text(two)
    with pytest.raises(RecipeError, match=f"several are named '{name}'"):
        load_adapter(str(minimal), {f"stages.{name}.steps": 7})


@pytest.mark.parametrize(
    ("key", "value"), [("answer", "It is {answer}."), ("prompt", "{question.x}")]
)
def test_braces_of_a_task_are_checked(key: str, value: str, tmp_path: Path) -> None:
    recipe = {
        "description": "d", "runner": "vqa", "reader": "vqav2", "source": "vqav2",
        "prompt": "{question}", "primary": "vqa_accuracy", "column": "VQA",
    } | {key: value}  # fmt: skip
    lines = [f'{name} = "{text}"' for name, text in recipe.items()]
    path = tmp_path / "own.toml"
    path.write_text("\n".join([*lines, 'metrics = ["vqa_accuracy"]']))
    with pytest.raises(RecipeError, match="may stand in braces"):
        load_task(str(path))


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"steps": 0}, "--steps 0: give at least 1"),
        ({"seed": -1}, "--seed -1: give 0 or a positive number"),
        ({"seed": 2**63}, "--seed .* below 2"),
        ({"joint": True, "settings": {"encoder.dtype": "float16"}}, "encoder.dtype float16"),
        ({"llm_train": "full", "settings": {"llm.dtype": "bfloat16"}}, "llm.dtype bfloat16"),
    ],
)
def test_what_could_not_train_is_refused_at_once(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        make_plan(**given)


def test_steps_and_epochs_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "both.toml"
    path.write_text(MINIMAL.replace("steps = 3", "steps = 3\nepochs = 1.0"))
    with pytest.raises(RecipeError, match="'steps' or 'epochs', not both"):
        load_adapter(str(path))


def test_a_layer_may_be_a_number_or_a_list(minimal: Path) -> None:
    assert load_adapter(str(minimal), {"encoder.layer": -2}).encoder.layer == (-2,)
    assert load_adapter(str(minimal), {"encoder.layer": [-2, -8]}).encoder.layer == (-2, -8)


@settings(deadline=None)
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12))
def test_no_unknown_key_is_ever_accepted(key: str) -> None:
    import tempfile

    known = set(AdapterRecipe.model_fields)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.toml"
        path.write_text(f"{key} = 1\n" + MINIMAL)
        if key in known:
            return
        with pytest.raises(RecipeError, match="unknown key"):
            load_adapter(str(path))


@pytest.mark.parametrize(("name", "torch_name"), [("no", "float32"), ("bf16", "bfloat16")])
def test_precision_takes_accelerates_names(minimal: Path, name: str, torch_name: str) -> None:
    same = [load_adapter(str(minimal), {"training.precision": key}) for key in (name, torch_name)]
    assert same[0] == same[1]
    assert load_adapter(str(minimal), {"encoder.dtype": "fp16"}).encoder.dtype == "float16"
    with pytest.raises(RecipeError, match=r"training\.precision.*'float32' or 'bfloat16'"):
        load_adapter(str(minimal), {"training.precision": "fp16"})


def _not_scoring(recipe: BaseModel) -> Iterator[tuple[str, ...]]:
    """Yield the path of every field of a recipe that is marked as changing no score."""
    for name, field in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        if (field.json_schema_extra or {}) == {"scoring": False}:
            yield (name,)
        elif isinstance(value, BaseModel):
            yield from ((name, *inner) for inner in _not_scoring(value))


def _changed(recipe: BaseModel, path: tuple[str, ...]) -> Any:
    """Return the recipe with another value at `path`."""
    name, *rest = path
    value = getattr(recipe, name)
    if rest:
        return recipe.model_copy(update={name: _changed(value, tuple(rest))})
    if isinstance(value, bool):
        other: object = not value
    elif isinstance(value, str):
        other = "sdpa" if name == "attention" else f"other {value}"
    else:
        other = (value or 0) + 7
    return recipe.model_copy(update={name: other})


def _record(plan: RunPlan) -> RunRecord:
    """A record as a run of this plan writes it, of whatever scores."""
    record = next(r for r in read_records(_RECORDS.parent) if not r.joint)
    tasks = {
        name: record.tasks[name].model_copy(update={"definition": task.model_dump(mode="json")})
        for name, task in plan.tasks.items()
    }
    adapter = {"name": plan.adapter_name, **plan.adapter.model_dump(mode="json")}
    return record.model_copy(update={"adapter": adapter, "tasks": tasks})


_PLAN = make_plan(tasks=["vqa"])
_FIELDS = [("adapter", *path) for path in _not_scoring(_PLAN.adapter)]
_FIELDS += [("task", *path) for path in _not_scoring(_PLAN.tasks["vqa"])]


def test_the_fields_that_change_no_score() -> None:
    assert {".".join(path) for path in _FIELDS} == {
        "adapter.controls",
        "adapter.description",
        "adapter.encoder.gradient_checkpointing",
        "adapter.evaluation_batch_images",
        "adapter.llm.gradient_checkpointing",
        "adapter.training.attention",
        "adapter.training.checkpoint_every",
        "adapter.training.feature_cache",
        "adapter.training.keep_checkpoints",
        "adapter.training.row_length",
        "task.column",
        "task.description",
    }


@pytest.mark.parametrize("path", _FIELDS, ids=".".join)
def test_a_field_that_changes_no_score_changes_no_identity(path: tuple[str, ...]) -> None:
    """Run identity, resume identity and table row are the same whatever its value."""
    kind, *field = path
    tasks: Mapping[str, TaskRecipe] = _PLAN.tasks
    adapter = _PLAN.adapter
    if kind == "task":
        tasks = {"vqa": _changed(tasks["vqa"], tuple(field))}
    else:
        adapter = _changed(adapter, tuple(field))
    other = dataclasses.replace(_PLAN, adapter=adapter, tasks=tasks)
    assert (other.adapter, other.tasks) != (_PLAN.adapter, _PLAN.tasks)
    assert other.scoring_settings() == _PLAN.scoring_settings()
    resumed = [training_identity(p.adapter, p.tasks, (), 0) for p in (_PLAN, other)]
    assert resumed[0] == resumed[1]
    records = [
        _record(plan).model_copy(update={"seed": seed}) for seed, plan in enumerate((_PLAN, other))
    ]
    (table,) = group_records(records)
    assert len(table.rows) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("training.precision", "float32"), ("llm.name", "smollm2-135m"), ("encoder.dtype", "fp16")],
)
def test_a_field_that_changes_scores_changes_every_identity(key: str, value: str) -> None:
    other = make_plan(tasks=["vqa"], settings={key: value})
    assert other.scoring_settings() != _PLAN.scoring_settings()
    resumed = [training_identity(p.adapter, p.tasks, (), 0) for p in (_PLAN, other)]
    assert resumed[0] != resumed[1]
    tables = group_records([_record(_PLAN), _record(other)])
    assert sum(len(table.rows) for table in tables) == 2


def test_recorded_keys_that_went_are_read_and_still_tell_runs_apart() -> None:
    recorded = {"name": "quick", **_PLAN.adapter.model_dump(mode="json")}
    training = recorded["training"]
    old = recorded | {"training": training | {"ema_decay": None}}
    averaged = recorded | {"training": training | {"ema_decay": 0.9, "feature_storage": "int8"}}
    assert recorded_adapter(old) == recorded_adapter(averaged) == _PLAN.adapter
    new, off, on = (scoring_settings(AdapterRecipe, a) for a in (recorded, old, averaged))
    assert new == off != on


def test_a_recorded_recipe_without_a_later_key_has_its_default() -> None:
    recorded = _PLAN.adapter.model_dump(mode="json")
    del recorded["projector"]["whiten"], recorded["llm"]["lora"]
    plain = make_plan(tasks=["vqa"], settings={"projector.whiten": False})
    assert scoring_settings(AdapterRecipe, recorded) == plain.adapter.scoring()


def test_a_key_added_later_leaves_the_identity_of_runs_without_it() -> None:
    stage, *later = _PLAN.adapter.stages
    projector = stage.projector.model_copy(update={"optimizer": "muon"})
    changed = _PLAN.adapter.model_copy(
        update={"stages": (stage.model_copy(update={"projector": projector}), *later)}
    )
    before = _PLAN.adapter.scoring()["stages"][0]["projector"]
    assert set(before) == {"learning_rate", "weight_decay", "layer_decay"}
    assert changed.scoring()["stages"][0]["projector"] == before | {"optimizer": "muon"}
