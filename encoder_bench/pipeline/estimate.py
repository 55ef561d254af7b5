"""What a run will cost, before it starts: time, memory and disk, from its plan alone.

No weights are loaded; an architecture that the catalogue does not have is built to be counted, test
questions are counted, and a short matrix product is measured, to learn how fast this machine
multiplies.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.hardware import device_type
from encoder_bench.base.recipes import StageSettings, TaskRecipe
from encoder_bench.data.folder import is_scenes, open_data
from encoder_bench.data.sample import Split
from encoder_bench.data.scenes.build import parse_sizes
from encoder_bench.encoders.catalog import EncoderSpec
from encoder_bench.encoders.loading import NoRandomFill
from encoder_bench.encoders.registry import RANDOM, find_spec, load_encoder
from encoder_bench.mllm.loading import count_parameters
from encoder_bench.mllm.memory import ADAMW_BYTES, activation_bytes, estimate
from encoder_bench.pipeline.plan import RunPlan
from encoder_bench.tasks.controls import ASKS_MODEL

_SCENE_TOKENS, _ROW_TOKENS = 12, 24
"""Tokens of one prompt with its answer, about: on scenes, and in rows that are not counted."""
_TOKEN_CHARACTERS = 4
"""Of English text, about."""
_SMOLLM2_PARAMETERS = 134_515_008
"""Known without its configuration."""
_SCENE_QUESTIONS = {"vqav2": 3, "captions": 1, "coco_oc": 2, "coco_mci": 2}
"""Test questions per drawn scene, by the source that a task reads."""
_BLIND = {"no-image", "mean-image"}
"""Baselines that show every question the same, so that each is answered once."""
_PROGRAM_BYTES = 2**30
"""Python with its libraries, about."""
_NOTABLY_FASTER = 1.2
_TRAINING_EFFICIENCY, _TASK_EFFICIENCY = 0.35, 0.25
"""Shares of a large matrix product's rate that training and answering reach, about."""


class RunEstimate(NamedTuple):
    """A rough cost, right to a factor of about three; None where it is not known here.

    Seconds are estimated for this machine's CPU only, those of tasks with their blind baselines.
    Memory is that of one training step (weights, gradients, optimizer state, activations), disk
    that of a checkpoint and the final weights. `encoded_images` are the most that training and
    tasks show to a frozen encoder, cached ones included, and `feature_bytes` what the cache needs
    for them; 0 where nothing is cached. `float32_rate` is how many times as fast this CPU
    multiplies in float32 as in the recipe's bfloat16. `unknown` says what could not be counted, and
    why.
    """

    training_seconds: float | None
    task_seconds: float | None
    test_samples: int | None
    memory_bytes: int | None
    disk_bytes: int | None
    encoded_images: int | None
    feature_bytes: int | None
    training_flops: float | None
    visual_tokens: int | None
    float32_rate: float | None
    unknown: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """Training and tasks; None where one is not known."""
        if self.training_seconds is None or self.task_seconds is None:
            return None
        return self.training_seconds + self.task_seconds

    def as_json(self) -> dict[str, Any]:
        """Return the fields and their total time as a JSON object."""
        return self._asdict() | {"seconds": self.seconds}

    def lines(self) -> list[str]:
        """Return the estimate as lines for a person; `n/a` where a count is not known."""
        training, tasks = duration_text(self.training_seconds), duration_text(self.task_seconds)
        asked = "" if self.test_samples is None else f" on {self.test_samples:,} samples"
        rows = {
            "time": f"{duration_text(self.seconds)}: training {training}, tasks{asked} {tasks}",
            "memory": size_text(self.memory_bytes),
            "disk": size_text(self.disk_bytes),
            "features": self._features_text(),
        }
        body = [f"  {name:<10} {value}" for name, value in rows.items()]
        reasons = (f"  n/a because {reason}" for reason in self.unknown)
        advice = []
        if (rate := self.float32_rate or 0.0) > _NOTABLY_FASTER:
            advice = [
                f"  precision  {rate:.1f} times as fast in float32 as in bfloat16 on this CPU:",
                "             --set training.precision=float32 trains sooner, to other scores",
            ]
        return ["estimated, to a factor of about three", *body, *advice, *reasons]

    def _features_text(self) -> str:
        if self.encoded_images == 0:
            return "none are cached"
        count = "n/a" if self.encoded_images is None else f"at most {self.encoded_images:,}"
        return f"{size_text(self.feature_bytes)}: {count} images to encode, less those in the cache"


def estimate_run(plan: RunPlan) -> RunEstimate:
    """Return the estimated cost of a plan.

    Raises:
        UnknownNameError: no such encoder.
        EncoderBenchError: no such device.
    """
    recipe, spec = plan.adapter, _spec(plan)
    found, unread = _training_samples(plan)
    taught = None if found is None else len(_images(found.values()))
    stages = [_as_counted(stage, found) for stage in recipe.stages]
    resolution = recipe.encoder.resolution or spec.resolution
    patches = (resolution // spec.patch) ** 2 if resolution and spec.patch else None
    visual = recipe.projector.visual_tokens or patches  # N is an upper bound of M
    encoder, llm = spec.parameters, _llm_parameters(recipe.llm.name)
    counted = all(stage.steps for stage in stages)
    turn = _ROW_TOKENS if found is None else _turn_tokens(found.values())
    on_cpu = device_type(plan.device) == "cpu"
    no_configuration = f"the configuration of {recipe.llm.name} is not on this machine"
    reasons: dict[str, object] = {
        f"the parameter count of {plan.encoder} is known only once it is loaded": encoder,
        f"the patch grid of {plan.encoder} is known only once it is loaded": patches,
        no_configuration: llm,
        unread: taught,
        "time is estimated on CPUs only": on_cpu or None,
    }
    asked, fault = _test_questions(plan)
    if fault:
        reasons[f"the test data cannot be read: {fault}"] = None
    flops = answering = memory = None
    if encoder is not None and patches is not None and visual is not None:
        needs = [_step_memory(plan, stage, encoder, patches, visual, turn) for stage in stages]
        memory = max(n for n in needs if n is not None) if None not in needs else None
        reasons[no_configuration] = memory
        if llm is not None and counted:
            flops = sum(_flops(plan, s, encoder, llm, patches, visual, turn) for s in stages)
        if llm is not None and asked is not None:
            read = asked.images_read * visual + asked.text_tokens
            answering = 2.0 * encoder * patches * asked.images + 2.0 * llm * read
    shown = _encoded_images(plan, stages, taught, asked)
    tuned = ([encoder] if plan.joint else []) + ([llm] if recipe.llm.train == "full" else [])
    return RunEstimate(
        training_seconds=_seconds(flops, recipe.training.precision, _TRAINING_EFFICIENCY, on_cpu),
        task_seconds=_seconds(answering, recipe.llm.dtype, _TASK_EFFICIENCY, on_cpu),
        test_samples=None if asked is None else asked.samples,
        memory_bytes=memory,
        disk_bytes=None if None in tuned else 16 * sum(count or 0 for count in tuned),
        encoded_images=shown,
        feature_bytes=_feature_bytes(plan, shown, patches),
        training_flops=flops,
        visual_tokens=visual,
        float32_rate=_float32_rate() if on_cpu and recipe.training.precision != "float32" else None,
        unknown=tuple(reason for reason, count in reasons.items() if count is None),
    )


def _spec(plan: RunPlan) -> EncoderSpec:
    return _counted_spec(plan.encoder, plan.weights, plan.adapter.encoder.resolution)


@functools.cache
def _counted_spec(name: str, weights: Path | None, resolution: int | None) -> EncoderSpec:
    """Return what is known of an encoder; nothing is fetched for it."""
    spec = find_spec(name)
    here = spec.source in ("timm", "open_clip") or weights or Path(spec.locator).is_dir()
    if here and None in (spec.parameters, spec.patch, spec.width):
        twin = RANDOM + name.removeprefix(RANDOM)
        with contextlib.suppress(EncoderBenchError), NoRandomFill():  # the run itself says why
            return load_encoder(twin, weights=weights, resolution=resolution).spec
    return spec


class _Counted(NamedTuple):
    """A task's images, its samples, tokens of all questions with their answers, and of each once.

    A blind baseline answers a question once, on however many images it is asked.
    """

    images: set[int | str]
    samples: int
    tokens: int
    blind_tokens: int


@functools.cache
def _counted(data: str, task: str, recipe: TaskRecipe, split: Split, limit: int | None) -> _Counted:
    """Return what a task asks; scenes are not drawn."""
    flag = "--train-data" if split == "train" else "--data"
    if is_scenes(data):
        scenes, each = (
            getattr(parse_sizes(data, flag), split),
            _SCENE_QUESTIONS.get(recipe.source, 1),
        )
        samples = min(scenes * each, scenes * each if limit is None else limit)
        tokens = samples * _SCENE_TOKENS
        return _Counted(set(range(math.ceil(samples / each))), samples, tokens, tokens)
    folder = open_data(data, images_required=False, flag=flag)
    rows = folder.task_samples(task, recipe, split, limit)
    once = dict(rows.pairs("question", "target"))
    texts = rows.pairs("question", "target"), once.items()
    return _Counted(set(rows.images()), len(rows), *(_tokens(recipe, pairs) for pairs in texts))


def _tokens(recipe: TaskRecipe, pairs: Iterable[tuple[str, str]]) -> int:
    """Return about how many tokens prompts have with their answers and what ends them."""
    fixed = recipe.prompt.replace("{question}", "")
    return sum(2 + math.ceil(len(fixed + a + b) / _TOKEN_CHARACTERS) for a, b in pairs)


def _training_samples(plan: RunPlan) -> tuple[Mapping[str, _Counted] | None, str]:
    """Return what training may show, or why it is not known."""
    if any(stage.mixture for stage in plan.adapter.stages):
        return None, "a mixture is not read for an estimate"
    try:
        return {
            name: _counted(plan.training_data, name, recipe, "train", None)
            for name, recipe in plan.training_recipes.items()
        }, ""
    except EncoderBenchError as error:
        return None, f"the training data cannot be read: {error}"


def _encoded_images(
    plan: RunPlan, stages: Sequence[StageSettings], taught: int | None, asked: _Questions | None
) -> int | None:
    """Return how many images a frozen encoder sees; 0 where its features are not cached."""
    if plan.joint or not plan.adapter.training.feature_cache:
        return 0
    if taught is None or asked is None:
        return None
    shown = sum(stage.images_per_step * (stage.steps or 0) for stage in stages)
    return min(taught, shown) + asked.images


def _as_counted(stage: StageSettings, found: Mapping[str, _Counted] | None) -> StageSettings:
    """Return a stage with its epochs as steps and no more samples an image than its tasks have."""
    if found is None:
        return stage
    steps = stage.steps
    if steps is None:
        epoch = len(_images(found.values())) / stage.images_per_step
        steps = math.ceil((stage.epochs or 1.0) * epoch)
    own = [found[task] for task in stage.tasks]
    most = sum(each.samples for each in own) / max(1, len(_images(own)))
    samples = max(1, min(stage.samples_per_image, math.ceil(most)))
    return stage.model_copy(update={"steps": steps, "samples_per_image": samples})


def _images(tasks: Iterable[_Counted]) -> set[int | str]:
    return set().union(*(each.images for each in tasks))


def _turn_tokens(tasks: Collection[_Counted]) -> int:
    """Return the mean tokens of a question with its answer."""
    return math.ceil(sum(each.tokens for each in tasks) / max(1, sum(t.samples for t in tasks)))


def _feature_bytes(plan: RunPlan, images: int | None, patches: int | None) -> int | None:
    """Return what the features of images take in the cache; None where their shape is unknown."""
    if images == 0:
        return 0
    width = _spec(plan).width
    if images is None or patches is None or width is None:
        return None
    adapter = plan.adapter
    small = adapter.training.feature_storage == "float16" or adapter.encoder.dtype != "float32"
    itemsize = 2 if small else 4
    return images * patches * width * len(plan.adapter.encoder.layer) * itemsize


class _Questions(NamedTuple):
    """What all tasks ask: distinct images, samples, and the images and text that the LLM reads."""

    images: int
    samples: int
    images_read: int
    text_tokens: int


def _test_questions(plan: RunPlan) -> tuple[_Questions | None, str]:
    """Return what the tasks ask, blind baselines of the model included, or why it is not known."""
    images: set[int | str] = set()
    samples = read = tokens = 0
    try:
        for name, recipe in plan.tasks.items():
            found = _counted(plan.data, name, recipe, "test", plan.limit)
            asked = set(recipe.controls) & set(ASKS_MODEL)
            blind = len(asked & _BLIND)
            images |= found.images
            samples += found.samples
            read += (1 + len(asked) - blind) * len(found.images) + blind
            choices = 2 * len(recipe.candidates) * found.samples
            own = (1 + len(asked) - blind) * (found.tokens + choices)
            tokens += (own + blind * found.blind_tokens) * recipe.decoding.num_beams
    except EncoderBenchError as error:
        return None, str(error)
    return _Questions(len(images), samples, read, tokens), ""


@functools.cache
def _llm_parameters(name: str) -> int | None:
    return _SMOLLM2_PARAMETERS if name == "smollm2-135m" else count_parameters(name)


_memory = functools.cache(estimate)


def _step_memory(
    plan: RunPlan, stage: StageSettings, encoder: int, patches: int, visual: int, turn: int
) -> int | None:
    """Return the bytes of a stage's step; None without the language model's configuration."""
    images = stage.micro_batch_images or stage.images_per_step
    language = _memory(
        plan.adapter.llm,
        images=images,
        questions_per_image=stage.samples_per_image,
        visual_tokens=visual,
        question_tokens=turn // 2,
        answer_tokens=turn - turn // 2,
        shared_prefix=plan.adapter.training.shared_prefix,
    )
    if language is None:
        return None
    total = sum(language) + 4 * encoder + _PROGRAM_BYTES
    if not plan.joint:
        return total
    spec = _spec(plan)
    width, depth = spec.width or 1024, spec.depth or 24
    heads = max(1, width // 64)
    activations = activation_bytes(
        SimpleNamespace(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads),
        rows=images,
        length=patches,
        size=4,
        trained=True,
        masked=False,
        recomputed=plan.adapter.encoder.gradient_checkpointing,
    )
    return total + ADAMW_BYTES * encoder + activations


def _flops(
    plan: RunPlan,
    stage: StageSettings,
    encoder: int,
    llm: int,
    patches: int,
    visual: int,
    turn: int,
) -> float:
    """Count 2 operations per parameter and token forward, and as many again for each gradient.

    A frozen encoder is counted once per image shown, as if no image were shown twice.

    Reference: Kaplan et al. 2020, section 2.1 (C = 6 N D; a frozen model behind a trained input
    needs no weight gradients, so 4 N D).
    """
    tuned = plan.adapter.llm.train == "full" and stage.llm is not None
    joint = plan.joint and stage.encoder is not None
    sequence = visual + stage.samples_per_image * turn
    image = (6 if tuned else 4) * llm * sequence + (6 if joint else 2) * encoder * patches
    return float(stage.images_per_step * (stage.steps or 0) * image)


def _seconds(flops: float | None, dtype: str, efficiency: float, on_cpu: bool) -> float | None:
    return flops / (_cpu_flops(dtype) * efficiency) if flops and on_cpu else None


def _float32_rate() -> float:
    return _cpu_flops("float32") / _cpu_flops("bfloat16")


@functools.cache
def _cpu_flops(precision: str) -> float:
    """Return the rate of the quickest matrix product within a fifth of a second."""
    size = 1024
    matrix = torch.ones(size, size, dtype=getattr(torch, precision))
    matrix @ matrix
    end, quickest = time.perf_counter() + 0.2, float("inf")
    while (start := time.perf_counter()) < end:
        matrix @ matrix
        quickest = min(quickest, time.perf_counter() - start)
    return 2.0 * size**3 / quickest


def duration_text(seconds: float | None) -> str:
    """Return seconds as `45 s`, `12 min` or `3.1 h`; `n/a` for None."""
    if seconds is None:
        return "n/a"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size_text(count: int | None) -> str:
    """Return bytes as `45 MiB` or `1.2 GiB`; `n/a` for None."""
    if count is None:
        return "n/a"
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
