"""Recipes: every shipped one parses; a wrong key or value is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder_bench.base.errors import RecipeError, UnknownNameError
from encoder_bench.base.recipes import AdapterRecipe, load_adapter, load_task, recipe_names

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
    with pytest.raises(RecipeError, match="unknown key 'visual_token'"):
        load_adapter(str(minimal), {"projector.visual_token": 4})
    with pytest.raises(RecipeError, match="'description' is not a table"):
        load_adapter(str(minimal), {"description.x": 4})


def test_steps_and_epochs_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "both.toml"
    path.write_text(MINIMAL.replace("steps = 3", "steps = 3\nepochs = 1.0"))
    with pytest.raises(RecipeError, match="'steps' or 'epochs', not both"):
        load_adapter(str(path))


def test_a_layer_may_be_a_number_or_a_list(minimal: Path) -> None:
    assert load_adapter(str(minimal), {"encoder.layer": -2}).encoder.layer == (-2,)
    assert load_adapter(str(minimal), {"encoder.layer": [-2, -8]}).encoder.layer == (-2, -8)


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
