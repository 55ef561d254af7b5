"""Recipes: TOML files as frozen models; the READMEs of their folders explain keys.

Run identity, resuming and the grouping of records follow from the fields that change scores.
"""

import copy
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, to_jsonable_python

from encoder_bench.base.errors import RecipeError, UnknownNameError, unknown_name_message
from encoder_bench.base.paths import with_home
from encoder_bench.base.plugins import load_plugin, plugin_entries

ModelT = TypeVar("ModelT", bound=BaseModel)

_TORCH_NAMES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
_AS_ACCELERATE = BeforeValidator(lambda name: _TORCH_NAMES.get(str(name), name))
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], _AS_ACCELERATE]
Precision = Annotated[Literal["float32", "bfloat16"], _AS_ACCELERATE]
"""Of computation; float16 would need loss scaling, bfloat16 does not."""
FeatureStorage = Literal["exact", "float16"]
"""How the feature cache keeps patch tokens; `exact` keeps the encoder's dtype."""
Control = Literal["no-image", "mean-image", "shuffled-images", "constant", "question-majority"]
Controls = Literal["none", "cheap", "all"]
"""Which of a task's blind baselines are measured; `cheap` leaves out those asked image by image."""
_Layers = BeforeValidator(lambda layer: (layer,) if isinstance(layer, int) else layer)
_NOT_SCORING: dict[str, Any] = {"scoring": False}
_ADDED_LATER: dict[str, Any] = {"scoring": "unless it is the default"}


def not_scoring(default: Any = ..., *, gt: int | None = None) -> Any:
    """Return a field that changes time, memory or wording, never a score."""
    return Field(default, gt=gt, json_schema_extra=_NOT_SCORING)


def added_later(default: Any) -> Any:
    """Return a field that runs were recorded without: its default leaves their identity alone."""
    return Field(default, json_schema_extra=_ADDED_LATER)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def scoring(self) -> dict[str, Any]:
        """Return the settings that change scores, as JSON."""
        return scoring_settings(type(self), self.model_dump(mode="json"))

    def _broken_rules(self) -> dict[str, bool]:
        """Return rules about keys that exclude or need each other, and whether each is broken."""
        return {}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if broken := [rule for rule, is_broken in self._broken_rules().items() if is_broken]:
            raise ValueError("; ".join(broken))
        return self


def scoring_settings(model: type[BaseModel], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a recorded recipe's settings that change scores.

    A key that the record lacks has its default. One that recipes have no more is kept, unless it
    was off (None), so that runs that used it stay apart from those that cannot.
    """
    fields = model.model_fields
    defaults = {name: f.default for name, f in fields.items() if not f.is_required()}
    kept: dict[str, Any] = {}
    for key, value in (to_jsonable_python(defaults) | dict(recorded)).items():
        if key not in fields:
            kept |= {} if value is None else {key: value}
        elif fields[key].json_schema_extra == _ADDED_LATER and value == defaults[key]:
            continue
        elif fields[key].json_schema_extra != _NOT_SCORING:
            inner = _model_in(fields[key].annotation)
            if inner and isinstance(value, Mapping):
                value = scoring_settings(inner, value)
            elif inner and isinstance(value, Sequence):
                value = [scoring_settings(inner, entry) for entry in value]
            kept[key] = value
    return kept


class EncoderSettings(_Frozen):
    """How the visual encoder is used; defaults are the checkpoint's own preprocessing."""

    trainable: bool = False
    layer: Annotated[tuple[int, ...], _Layers] = (-1,)
    resolution: int | None = Field(default=None, gt=0)
    dtype: Dtype = "float32"
    gradient_checkpointing: bool = not_scoring(False)


class ProjectorSettings(_Frozen):
    """What turns `(B, N, D)` patch tokens into `(B, M, D_llm)` visual tokens."""

    name: str = "mlp"
    visual_tokens: int | None = Field(default=None, gt=0)
    depth: int = Field(default=2, gt=0)
    hidden_width: int | None = Field(default=None, gt=0)
    heads: int = Field(default=8, gt=0)
    head_width: int = Field(default=64, gt=0)
    whiten: Literal[False, True, "channels"] = False


class LoraSettings(_Frozen):
    """Low-rank adaptation of the LLM (Hu et al. 2021), never of the encoder."""

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class LanguageModelSettings(_Frozen):
    """Which causal language model reads the visual tokens, and whether it is trained."""

    name: str = "tiny-llama"
    train: Literal["frozen", "lora", "full"] = "frozen"
    lora: LoraSettings = LoraSettings()
    dtype: Dtype = "float32"
    max_length: int = Field(default=2048, gt=0)
    chat_template: bool | str = True
    image_prefix: str = ""
    image_suffix: str = ""
    gradient_checkpointing: bool = not_scoring(False)


class PartOptimizer(_Frozen):
    """Optimizer settings of one part (encoder, projector or LLM).

    `muon` gives every direction of a weight matrix a step of the same size, so that what all
    samples have in common does not drown what sets them apart; embeddings and biases stay with
    AdamW.
    """

    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Literal["adamw", "muon"] = added_later("adamw")
    layer_decay: float = Field(default=1.0, gt=0, le=1)


class StageSettings(_Frozen):
    """One pass of training; a recipe has one or two (alignment, instruction tuning).

    It trains on the rows of a mixture, which is named or a file, else on samples of tasks. What a
    mixture holds is in the run's identity beside the recipe; its name changes nothing.
    A part trains in a stage when it has an optimizer here and the recipe lets it train at all:
    `encoder` only under `encoder.trainable`, `llm` only unless `llm.train` is "frozen".
    """

    name: str
    mixture: str | None = not_scoring(None)
    tasks: tuple[str, ...] = ()
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    images_per_step: int = Field(gt=0)
    micro_batch_images: int | None = Field(default=None, gt=0)
    samples_per_image: int = Field(default=8, gt=0)
    projector: PartOptimizer
    encoder: PartOptimizer | None = None
    llm: PartOptimizer | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)
    final_learning_rate_fraction: float = Field(default=0.0, ge=0, le=1)
    clip_norm: float | None = Field(default=1.0, gt=0)

    def _broken_rules(self) -> dict[str, bool]:
        return {
            "give 'steps' or 'epochs', not both": bool(self.steps and self.epochs),
            "name at least one task, or a mixture": not (self.tasks or self.mixture),
        }


class TrainingSettings(_Frozen):
    """How training runs, whatever the stage."""

    precision: Precision = "float32"
    feature_cache: bool = not_scoring(True)
    feature_storage: FeatureStorage = "exact"
    shared_prefix: bool = True
    row_length: int | None = not_scoring(None, gt=0)
    attention: Literal["auto", "sdpa", "flex_attention"] = not_scoring("auto")
    checkpoint_every: int = not_scoring(100, gt=0)
    keep_checkpoints: int = not_scoring(1, gt=0)


class AdapterRecipe(_Frozen):
    """Projector + LLM + what trains and how: one file of `adapters/`."""

    description: str = not_scoring()
    encoder: EncoderSettings = EncoderSettings()
    projector: ProjectorSettings = ProjectorSettings()
    llm: LanguageModelSettings = LanguageModelSettings()
    training: TrainingSettings = TrainingSettings()
    stages: tuple[StageSettings, ...] = Field(min_length=1)
    evaluation_batch_images: int = not_scoring(16, gt=0)
    controls: Controls = not_scoring("all")


class DecodingSettings(_Frozen):
    """How an answer is generated. `num_beams` 1 is greedy; sampling is never used."""

    max_new_tokens: int = Field(default=16, gt=0)
    num_beams: int = Field(default=1, gt=0)
    stop: tuple[str, ...] = ()


class TaskRecipe(_Frozen):
    """Data, prompt, decoding and metrics of one task: one file of `tasks/`.

    `runner` names the code (`vqa`, `captioning`, `counting`, `identification`, or a plug-in's);
    `reader` the data reader and `source` the part of the data that it reads.
    """

    description: str = not_scoring()
    runner: str
    reader: str
    source: str
    prompt: str
    answer: str = "{target}"
    decoding: DecodingSettings = DecodingSettings()
    candidates: tuple[str, ...] = ()
    metrics: tuple[str, ...] = Field(min_length=1)
    primary: str
    column: str = not_scoring()
    controls: tuple[Control, ...] = get_args(Control)

    def fill_prompt(self, question: str) -> str:
        """Return what a model is asked, without the chat template."""
        return self.prompt.format(question=question)

    def fill_answer(self, target: str) -> str:
        """Return the answer that training teaches."""
        return self.answer.format(target=target)

    @field_validator("controls", mode="before")
    @classmethod
    def _earlier_name(cls, value: Any) -> Any:
        """Read `majority`, which records of earlier versions list, as the control of today."""
        if not isinstance(value, list | tuple):
            return value
        return tuple("question-majority" if name == "majority" else name for name in value)

    @field_validator("prompt", "answer")
    @classmethod
    def _known_fields(cls, value: str, info: ValidationInfo) -> str:
        field = "question" if info.field_name == "prompt" else "target"
        try:
            value.format(**{field: ""})
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(f"only '{{{field}}}' may stand in braces ({error!r})") from None
        return value


class SourceSettings(_Frozen):
    """One source of a mixture: rows of one format, and how many of them are trained on.

    Attributes:
        path: a file, a folder or a pattern, below the training data's folder; `hub` instead names
            a data set of the Hub. Where files are changes nothing: a mixture's fingerprint holds
            what they say.
        images: the folder that image names are relative to.
        coco: file names that are numbers are COCO's ids, whatever their folder.
        weight: 0.5 trains on half of the rows, chosen by a hash; 2 on each twice.
        max_rows: at most so many, chosen by a hash; of a stream the first.
        prompt: what is asked before a caption, or in place of a one-turn row's question.
    """

    name: str = Field(pattern=r"^[^/\s]+$")
    format: Literal["llava", "chat", "webdataset", "captions", "folder"]
    path: str | None = not_scoring(None)
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = not_scoring(False)
    images: str = not_scoring("")
    coco: bool = False
    weight: float | None = Field(default=None, gt=0, le=100)
    max_rows: int | None = Field(default=None, gt=0)
    prompt: str | None = None
    image_column: str | None = None
    text_column: str | None = None
    tasks: tuple[str, ...] = ()

    def _broken_rules(self) -> dict[str, bool]:
        through_datasets = self.format in ("chat", "captions")
        return {
            "give 'path', or 'hub' for a data set of the Hub": bool(self.path) == bool(self.hub),
            "give 'weight' or 'max_rows', not both": bool(self.weight and self.max_rows),
            "'hub' needs format 'chat' or 'captions'": bool(self.hub) and not through_datasets,
            "'streaming' needs 'hub' and 'max_rows'": self.streaming
            and not (self.hub and self.max_rows),
            "'tasks' are those of format 'folder', which needs them": bool(self.tasks)
            != (self.format == "folder"),
        }


class MixtureRecipe(_Frozen):
    """Which rows a stage trains on, from which sources: one file of `mixtures/`.

    `overlap` says what makes a training image one of the test images: `id` is COCO's number,
    `bytes` the file's content, `pixels` what it shows (each image is decoded once).
    """

    description: str = not_scoring()
    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    overlap: tuple[Literal["id", "bytes", "pixels"], ...] = ("id", "bytes")
    on_overlap: Literal["drop", "refuse"] = "drop"

    def _broken_rules(self) -> dict[str, bool]:
        counts = Counter(source.name for source in self.sources)
        return {f"two sources have the name '{name}'": counts[name] > 1 for name in counts}


Kind = Literal["adapters", "tasks", "mixtures"]


def recorded_adapter(recorded: Mapping[str, Any]) -> AdapterRecipe:
    """Return the adapter recipe of a record; keys that recipes have no more are left out.

    Raises:
        RecipeError: the record's recipe does not fit the present keys.
    """
    content = {key: value for key, value in recorded.items() if key != "name"}
    content["training"] = {
        key: value
        for key, value in recorded.get("training", {}).items()
        if key != "ema_decay" and (key, value) != ("feature_storage", "int8")
    }
    return _validated(content, AdapterRecipe, "recorded adapter")


def recipe_folder(kind: Kind) -> Path:
    """Return the folder of shipped recipes: the packaged copy, else the checkout's."""
    packaged = Path(str(resources.files("encoder_bench"))) / "_recipes" / kind
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / kind


def recipe_names(kind: Kind) -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in recipe_folder(kind).glob("*.toml"))


def _find(kind: Kind, name: str) -> Path:
    """Return the file of a recipe: a path, a shipped one's, or that of another package.

    Those are found by the entry points `encoder_bench.task_recipes`, `adapter_recipes` and
    `mixture_recipes`, which name a file's path.
    """
    if name.endswith(".toml"):
        path = with_home(name)
        if not path.is_file():
            raise RecipeError(f"{name}: no such recipe file")
        return path
    path = recipe_folder(kind) / f"{name}.toml"
    if path.is_file():
        return path
    others = plugin_entries(f"encoder_bench.{kind[:-1]}_recipes")
    if name in others:
        return Path(str(load_plugin(others[name], object)))
    known = [*recipe_names(kind), *others]
    raise UnknownNameError(f"{kind[:-1]} recipe", name, known, "A path must end in '.toml'.")


def load_adapter(name: str, overrides: Mapping[str, Any] | None = None) -> AdapterRecipe:
    """Return `adapters/NAME.toml` (or a path ending in `.toml`) with dotted-key overrides applied.

    An override of None (`{"projector.visual_tokens": None}`) is skipped.

    Raises:
        RecipeError: unreadable TOML, an unknown key (the nearest is suggested), a bad value.
        UnknownNameError: no such recipe.
    """
    return _load("adapters", name, AdapterRecipe, overrides or {})


def load_task(name: str) -> TaskRecipe:
    """Return `tasks/NAME.toml` (or a path); raises as `load_adapter`."""
    return _load("tasks", name, TaskRecipe, {})


def load_mixture(name: str) -> MixtureRecipe:
    """Return `mixtures/NAME.toml` (or a path); raises as `load_adapter`."""
    return _load("mixtures", name, MixtureRecipe, {})


def _load(kind: Kind, name: str, model: type[ModelT], overrides: Mapping[str, Any]) -> ModelT:
    path = _find(kind, name)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    given = {dotted: value for dotted, value in overrides.items() if value is not None}
    own = copy.deepcopy(content) if given else content
    for dotted, value in given.items():
        *parents, last = dotted.split(".")
        table: Any = content
        for key in parents:
            table = _inside(table, key, dotted)
        if not isinstance(table, dict):
            raise RecipeError(f"cannot override '{dotted}': name one of '{parents[-1]}' before it")
        table[last] = value
    try:
        return _validated(content, model, str(path))
    except RecipeError:
        if given and _is_valid(own, model):
            return _validated(content, model, f"{path} with {', '.join(given)} set")
        raise


def _inside(table: Any, key: str, dotted: str) -> Any:
    """Return the table of a key, or of a name where `table` is an array of tables (stages)."""
    if isinstance(table, list):
        named = [each for each in table if isinstance(each, dict) and str(each.get("name")) == key]
        names = [str(each.get("name")) for each in table if isinstance(each, dict)]
        if len(named) == 1:
            return named[0]
        wrong = f"several are named '{key}'" if named else unknown_name_message("name", key, names)
        raise RecipeError(f"cannot override '{dotted}': {wrong}")
    inner = table.setdefault(key, {})
    if not isinstance(inner, dict | list):
        raise RecipeError(f"cannot override '{dotted}': '{key}' is not a table")
    return inner


def _is_valid(content: Mapping[str, Any], model: type[BaseModel]) -> bool:
    try:
        model.model_validate(content)
    except ValidationError:
        return False
    return True


def _validated(content: Mapping[str, Any], model: type[ModelT], where: str) -> ModelT:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_explain(problem, model) for problem in error.errors())
        raise RecipeError(f"{where}: {problems}") from error


def _explain(problem: ErrorDetails, model: type[BaseModel]) -> str:
    """Return what pydantic reports, with the nearest key for an unknown one."""
    place = [str(part) for part in problem["loc"]]
    if problem["type"] != "extra_forbidden":
        return f"'{'.'.join(place)}': {problem['msg']}" if place else problem["msg"]
    *parents, last = place
    inner: type[BaseModel] | None = model
    for name in parents:
        if inner and name in inner.model_fields:
            inner = _model_in(inner.model_fields[name].annotation)
    message = unknown_name_message("key", last, inner.model_fields if inner else ())
    return ": ".join([".".join(parents), message] if parents else [message])


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((model for model in found if model), None)
