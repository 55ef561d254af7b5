"""What a run will do: flags and recipes merged before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import RecipeError, UnknownNameError
from encoder_bench.base.paths import RESULTS
from encoder_bench.base.recipes import (
    AdapterRecipe,
    StageSettings,
    TaskRecipe,
    load_adapter,
    load_task,
    recorded_adapter,
)
from encoder_bench.base.record import RunRecord

DEFAULT_ENCODER = "tiny-deit"
DEFAULT_TASKS = ("vqa", "captioning", "oc", "mci")


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run, fully resolved: every setting that changes a score, and where things go.

    Attributes:
        encoder: a registered name or a general form (`timm:NAME`, `a+b`).
        adapter_name: the recipe as the user named it.
        adapter: that recipe with every flag applied.
        tasks: task name -> its recipe, in the order in which they run.
        training_recipes: the same for every task that a stage trains on, tested or not.
        data: where test samples come from (`scenes`, `coco`, or a folder).
        training_data: where training samples come from; often the same.
        seed: fixes initialisation, order of samples, and the bootstrap.
        limit: at most so many test samples a task, a seeded subset; None for all.
        weights: a local folder or file with the encoder's checkpoint, instead of the Hub.
        results: folder of records, predictions and checkpoints.
        device: `auto` or a torch device.
        trust_remote_code: let a Hub repository run its own Python code; recorded.
    """

    encoder: str
    adapter_name: str
    adapter: AdapterRecipe
    tasks: Mapping[str, TaskRecipe]
    training_recipes: Mapping[str, TaskRecipe]
    data: str
    training_data: str
    seed: int
    limit: int | None
    weights: Path | None
    results: Path
    device: str
    trust_remote_code: bool

    @property
    def joint(self) -> bool:
        """Whether the encoder is tuned together with the projector."""
        return self.adapter.encoder.trainable

    def scoring_settings(self) -> dict[str, Any]:
        """Return the settings that determine the score, as JSON; part of the run's identity."""
        return {
            "encoder": self.encoder,
            "adapter": self.adapter.scoring(),
            "tasks": {name: recipe.scoring() for name, recipe in self.tasks.items()},
            "training_recipes": {
                name: recipe.scoring() for name, recipe in self.training_recipes.items()
            },
            "seed": self.seed,
            "limit": self.limit,
        }


def make_plan(
    *,
    encoder: str = DEFAULT_ENCODER,
    joint: bool = False,
    adapter: str = "quick",
    projector: str | None = None,
    visual_tokens: int | None = None,
    llm: str | None = None,
    llm_train: str | None = None,
    layer: Sequence[int] | None = None,
    resolution: int | None = None,
    steps: int | None = None,
    data: str = "scenes",
    training_data: str | None = None,
    tasks: Sequence[str] = DEFAULT_TASKS,
    seed: int = 0,
    limit: int | None = None,
    weights: Path | None = None,
    results: Path = RESULTS,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> RunPlan:
    """Merge flags over recipes and check what can be checked without loading anything.

    `joint` (tune the encoder too), `layer`, `resolution`, `projector`, `visual_tokens`, `llm` and
    `llm_train` override the recipe's keys, `steps` every stage's, `settings` any other dotted key
    (`{"training.precision": "bfloat16"}`). `adapter` and `tasks` are names or TOML files; without
    `training_data` it is `data`. All others are `RunPlan`'s.

    Raises:
        RecipeError: a recipe or an override is wrong.
        UnknownNameError: no such encoder, recipe, projector or task.
    """
    flags = {
        "encoder.trainable": joint or None,
        "encoder.layer": list(layer) if layer else None,
        "encoder.resolution": resolution,
        "projector.name": projector,
        "projector.visual_tokens": visual_tokens,
        "llm.name": llm,
        "llm.train": llm_train,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    recipe = load_adapter(adapter, {**(settings or {}), **given})
    _check(encoder, recipe.projector.name, limit)
    recipe = _resolve_stages(recipe, adapter, steps)
    tested = _task_recipes(tasks)
    trained = dict.fromkeys(task for stage in recipe.stages for task in stage.tasks)
    return RunPlan(
        encoder=encoder,
        adapter_name=adapter,
        adapter=recipe,
        tasks=tested,
        training_recipes={name: tested.get(name) or load_task(name) for name in trained},
        data=data,
        training_data=training_data or data,
        seed=seed,
        limit=limit,
        weights=weights,
        results=results,
        device=device,
        trust_remote_code=trust_remote_code,
    )


def recorded_plan(
    record: RunRecord, *, results: Path, weights: Path | None, device: str
) -> RunPlan:
    """Return the plan by which a recorded run's model is built; it has neither tasks nor data.

    Raises:
        RecipeError: the recorded recipe does not fit the present keys.
    """
    return RunPlan(
        encoder=record.encoder.name,
        adapter_name=str(record.adapter["name"]),
        adapter=recorded_adapter(record.adapter),
        tasks={},
        training_recipes={},
        data="",
        training_data="",
        seed=record.seed,
        limit=record.limit,
        weights=weights,
        results=results,
        device=device,
        trust_remote_code=False,
    )


def _check(encoder: str, projector: str, limit: int | None) -> None:
    from encoder_bench.encoders.registry import find_spec
    from encoder_bench.mllm.projectors import projector_names

    find_spec(encoder)
    if projector not in projector_names():
        raise UnknownNameError("projector", projector, projector_names())
    if limit is not None and limit < 1:
        raise RecipeError(f"--limit {limit}: give at least 1")


def _resolve_stages(recipe: AdapterRecipe, name: str, steps: int | None) -> AdapterRecipe:
    """Set `--steps`, drop optimizers of frozen parts, refuse a part that would never train."""
    joint, llm = recipe.encoder.trainable, recipe.llm.train != "frozen"

    def resolved(stage: StageSettings) -> StageSettings:
        update: dict[str, Any] = {} if steps is None else {"steps": steps, "epochs": None}
        update |= {} if joint else {"encoder": None}
        update |= {} if llm else {"llm": None}
        return stage.model_copy(update=update)

    stages = tuple(resolved(stage) for stage in recipe.stages)
    if joint and not any(stage.encoder for stage in stages):
        raise RecipeError(
            f"adapter '{name}': joint tuning needs a stage with an [encoder] optimizer; "
            "add one with a learning_rate"
        )
    if llm and not any(stage.llm for stage in stages):
        raise RecipeError(
            f"adapter '{name}': llm.train '{recipe.llm.train}' needs a stage with an [llm] "
            "optimizer; add one with a learning_rate"
        )
    return recipe.model_copy(update={"stages": stages})


def _task_recipes(names: Sequence[str]) -> dict[str, TaskRecipe]:
    recipes: dict[str, TaskRecipe] = {}
    for name in names:
        key = Path(name).stem if name.endswith(".toml") else name
        if key in recipes:
            raise RecipeError(f"--tasks names '{key}' twice")
        recipes[key] = load_task(name)
    if not recipes:
        raise RecipeError("--tasks is empty; name at least one")
    return recipes
