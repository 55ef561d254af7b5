"""What a run will do: flags merged over recipes."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from encoder_bench.base.errors import EncoderBenchError, RecipeError, UnknownNameError
from encoder_bench.base.paths import RESULTS
from encoder_bench.base.recipes import (
    AdapterRecipe,
    Control,
    Controls,
    MixtureRecipe,
    SourceSettings,
    TaskRecipe,
    load_adapter,
    load_mixture,
    load_task,
    recorded_adapter,
)
from encoder_bench.base.record import RunRecord
from encoder_bench.tasks.task import check_recipe

DEFAULT_ENCODER = "tiny-deit"
DEFAULT_TASKS = ("vqa", "captioning", "oc", "mci")
NO_MIXTURE = "none"


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run, fully resolved: every setting that changes a score, and where things go.

    Attributes:
        adapter: the recipe with every flag applied; `adapter_name` as the user named it.
        tasks: task name -> its recipe, in the order in which they run.
        training_recipes: the same for every task that a stage trains on, tested or not.
        mixtures: the recipe of every mixture that a stage trains on, by the name it is given there.
        data: where test samples come from (`scenes`, `coco`, or a folder).
        seed: fixes initialisation, order of samples, and the bootstrap.
        limit: most test samples per task, the same ones for every seed; None for all.
    """

    encoder: str
    adapter_name: str
    adapter: AdapterRecipe
    seed: int
    limit: int | None
    weights: Path | None
    results: Path
    device: str
    trust_remote_code: bool = False
    tasks: Mapping[str, TaskRecipe] = field(default_factory=dict)
    training_recipes: Mapping[str, TaskRecipe] = field(default_factory=dict)
    mixtures: Mapping[str, MixtureRecipe] = field(default_factory=dict)
    data: str = ""
    training_data: str = ""

    @property
    def joint(self) -> bool:
        """Whether the encoder is tuned together with the projector."""
        return self.adapter.encoder.trainable

    def scoring_settings(self) -> dict[str, Any]:
        """Return the settings that determine the score, as JSON; part of the run's identity."""
        names = [stage.mixture for stage in self.adapter.stages]
        mixtures = [self.mixtures[name].scoring() if name else None for name in names]
        return ({"mixtures": mixtures} if self.mixtures else {}) | {
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
    mixture: Sequence[str] = (),
    tasks: Sequence[str] = DEFAULT_TASKS,
    seed: int = 0,
    limit: int | None = None,
    controls: str | None = None,
    weights: Path | None = None,
    results: Path = RESULTS,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> RunPlan:
    """Merge flags over recipes (names or TOML files); check what can be checked without loading.

    `mixture` names one for all stages or one each, or `none`; `settings` override any dotted key.

    Raises:
        RecipeError: a recipe or an override is wrong.
        UnknownNameError: no such encoder, recipe, projector, mixture or task.
    """
    flags: dict[str, Any] = {
        "encoder.trainable": joint or None,
        "encoder.layer": list(layer) if layer else None,
        "encoder.resolution": resolution,
        "projector.name": projector,
        "projector.visual_tokens": visual_tokens,
        "llm.name": llm,
        "llm.train": llm_train,
        "controls": controls,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    recipe = load_adapter(adapter, {**(settings or {}), **given})
    _check(encoder, recipe.projector.name, limit, steps, seed)
    _check_dtypes(recipe)
    recipe = _resolve_stages(recipe, adapter, mixture, steps)
    tested = _task_recipes(tasks, recipe.controls)
    return RunPlan(
        encoder=encoder, adapter_name=adapter, adapter=recipe, tasks=tested,
        training_recipes={n: tested.get(n) or load_task(n) for n in _taught(recipe)},
        mixtures={s.mixture: load_mixture(s.mixture) for s in recipe.stages if s.mixture},
        data=data, training_data=training_data or data, seed=seed, limit=limit, weights=weights,
        results=results, device=device, trust_remote_code=trust_remote_code,
    )  # fmt: skip


def check_places(plan: RunPlan) -> None:
    """Check that what a plan names is there, before anything is loaded: folders, files, layers.

    Raises:
        EncoderBenchError: one is not, or cannot be read; names its flag or its mixture's source.
    """
    from encoder_bench.data.folder import is_scenes, open_data
    from encoder_bench.data.scenes.build import parse_sizes
    from encoder_bench.encoders.catalog import check_layer
    from encoder_bench.encoders.registry import check_files, find_spec

    spec = find_spec(plan.encoder)
    check_files(spec, plan.weights)
    if spec.parameters and spec.source != "combined" and plan.weights is None:
        check_layer(spec.name, plan.adapter.encoder.layer, spec.depth)
    for data, flag in ((plan.data, "--data"), (plan.training_data, "--train-data")):
        if is_scenes(data):
            parse_sizes(data, flag)
        else:
            open_data(data, images_required=False, flag=flag)
    for mixture in plan.mixtures.values():
        for source in mixture.sources:
            _check_source(source, plan.training_data)
    from encoder_bench.mllm.loading import check_name  # imports torch, which takes seconds

    check_name(plan.adapter.llm.name)


@functools.cache
def _check_source(source: SourceSettings, training_data: str) -> None:
    """Check a mixture's source, unless it is in scenes, which the run draws."""
    from encoder_bench.data.folder import is_scenes, open_data
    from encoder_bench.data.formats import find_place

    drawn = source.format == "folder" and is_scenes(str(source.path))
    if not (is_scenes(training_data) or drawn):
        find_place(source, open_data(training_data, images_required=False).root)


def mixture_files(plan: RunPlan) -> list[Path]:
    """Return the files on disk that a plan's mixtures are read from, as far as they are there."""
    from encoder_bench.data.folder import open_data
    from encoder_bench.data.formats import find_place

    found: list[Path] = []
    for mixture in plan.mixtures.values():
        for source in mixture.sources:
            if source.path and source.format != "folder":
                with contextlib.suppress(EncoderBenchError):
                    root = open_data(plan.training_data, images_required=False).root
                    found += find_place(source, root).files
    return found


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
        seed=record.seed,
        limit=record.limit,
        weights=weights,
        results=results,
        device=device,
    )


def _check(encoder: str, projector: str, limit: int | None, steps: int | None, seed: int) -> None:
    from encoder_bench.encoders.registry import find_spec
    from encoder_bench.mllm.projectors import projector_names

    find_spec(encoder)
    if projector not in projector_names():
        raise UnknownNameError("projector", projector, projector_names())
    if limit is not None and limit < 1:
        raise RecipeError(f"--limit {limit}: give at least 1")
    if steps is not None and steps < 1:
        raise RecipeError(f"--steps {steps}: give at least 1")
    if not 0 <= seed < 2**63:
        raise RecipeError(f"--seed {seed}: give 0 or a positive number below 2^63")


def _check_dtypes(recipe: AdapterRecipe) -> None:
    """Refuse to train weights of half precision, in which small steps vanish or go too far.

    AdamW's second moment underflows in float16, and in bfloat16 most weights do not move at all.
    """
    for key, dtype, trained in (
        ("encoder.dtype", recipe.encoder.dtype, recipe.encoder.trainable),
        ("llm.dtype", recipe.llm.dtype, recipe.llm.train == "full"),
    ):
        if trained and dtype != "float32":
            raise RecipeError(
                f"{key} {dtype}: weights that train are in float32; set {key}=float32 and "
                "training.precision=bfloat16, which computes in half precision"
            )


def _taught(recipe: AdapterRecipe) -> list[str]:
    """Return the tasks whose samples a stage trains on."""
    return [name for stage in recipe.stages if not stage.mixture for name in stage.tasks]


def _resolve_stages(
    recipe: AdapterRecipe, name: str, mixtures: Sequence[str], steps: int | None
) -> AdapterRecipe:
    """Set `--mixture` and `--steps`, drop frozen parts' optimizers, refuse parts that never train.

    `mixtures` are one for all stages, or one for each; none leaves the recipe's.
    """
    trains = {
        "encoder": (recipe.encoder.trainable, "joint tuning"),
        "llm": (recipe.llm.train != "frozen", f"llm.train '{recipe.llm.train}'"),
    }
    update: dict[str, Any] = {part: None for part, (trained, _) in trains.items() if not trained}
    update |= {} if steps is None else {"steps": steps, "epochs": None}
    count = len(recipe.stages)
    if mixtures and len(mixtures) not in (1, count):
        raise RecipeError(
            f"--mixture names {len(mixtures)} mixtures, adapter '{name}' has {count} stages; name "
            "one for all stages, or one for each"
        )
    stages = []
    for number, stage in enumerate(recipe.stages):
        mixture = mixtures[number % len(mixtures)] if mixtures else None
        if mixture == NO_MIXTURE and not stage.tasks:
            raise RecipeError(
                f"--mixture none: stage '{stage.name}' of adapter '{name}' names no tasks to train "
                "on instead"
            )
        if mixture is not None:
            update["mixture"] = None if mixture == NO_MIXTURE else mixture
        stages.append(stage.model_copy(update=update))
    for part, (trained, why) in trains.items():
        if trained and not any(getattr(stage, part) for stage in stages):
            raise RecipeError(
                f"adapter '{name}': {why} needs a stage with an [{part}] optimizer; add one with a "
                "learning_rate"
            )
    return recipe.model_copy(update={"stages": tuple(stages)})


def _task_recipes(names: Sequence[str], controls: Controls) -> dict[str, TaskRecipe]:
    """Return task recipes by name, with those of their blind baselines that are asked for."""
    left_out = {"all": (), "cheap": ("shuffled-images",), "none": get_args(Control)}[controls]
    recipes: dict[str, TaskRecipe] = {}
    for name in names:
        key = Path(name).stem if name.endswith(".toml") else name
        if key in recipes:
            raise RecipeError(f"--tasks names '{key}' twice")
        recipe = load_task(name)
        check_recipe(key, recipe)
        kept = tuple(control for control in recipe.controls if control not in left_out)
        recipes[key] = recipe.model_copy(update={"controls": kept})
    if not recipes:
        raise RecipeError("--tasks is empty; name at least one")
    return recipes
