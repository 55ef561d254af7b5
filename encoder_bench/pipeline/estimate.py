"""What a run will cost, before it starts: time, memory and disk, from its plan alone.

No weights are loaded; test questions are counted, and a short matrix product is measured, to learn
how fast this machine multiplies.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.hardware import device_type
from encoder_bench.base.recipes import StageSettings, TaskRecipe
from encoder_bench.data.folder import is_scenes, open_data
from encoder_bench.data.sample import Split
from encoder_bench.data.scenes.build import parse_sizes
from encoder_bench.encoders.registry import find_spec
from encoder_bench.mllm.loading import count_parameters
from encoder_bench.mllm.memory import ADAMW_BYTES, activation_bytes, estimate
from encoder_bench.pipeline.plan import RunPlan
from encoder_bench.tasks.controls import ASKS_MODEL

_TURN_TOKENS = 24
"""Tokens of one training prompt with its answer, about; scenes have 12, VQAv2 15, captions 30."""
_SMOLLM2_PARAMETERS = 134_515_008
"""Known without its configuration."""
_SCENE_QUESTIONS = {"vqav2": 3, "captions": 1, "coco_oc": 2, "coco_mci": 2}
"""Test questions per drawn scene, by the source that a task reads."""
_PROGRAM_BYTES = 2**30
"""Python with its libraries, about."""
_TRAINING_EFFICIENCY, _TASK_EFFICIENCY = 0.35, 0.1
"""Shares of a large matrix product's rate that training and answering reach, about."""


class RunEstimate(NamedTuple):
    """A rough cost, right to a factor of about three; None where it is not known here.

    Seconds are estimated for this machine's CPU only, those of tasks with their blind baselines.
    Memory is that of one training step (weights, gradients, optimizer state, activations), disk
    that of a checkpoint and the final weights. `encoded_images` are the most that training and
    tasks show to a frozen encoder, cached ones included, and `feature_bytes` what the cache needs
    for them; 0 where nothing is cached. `unknown` says what could not be counted, and why.
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
        return ["estimated, to a factor of about three", *body, *reasons]

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
    recipe, spec = plan.adapter, find_spec(plan.encoder)
    taught, unread = _training_images(plan)
    stages = [_in_steps(stage, taught) for stage in recipe.stages]
    resolution = recipe.encoder.resolution or spec.resolution
    patches = (resolution // spec.patch) ** 2 if resolution and spec.patch else None
    visual = recipe.projector.visual_tokens or patches  # N is an upper bound of M
    encoder, llm = spec.parameters, _llm_parameters(recipe.llm.name)
    counted = all(stage.steps for stage in stages)
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
        needs = [_step_memory(plan, stage, encoder, patches, visual) for stage in stages]
        memory = max(n for n in needs if n is not None) if None not in needs else None
        reasons[no_configuration] = memory
        if llm is not None and counted:
            flops = sum(_flops(plan, s, encoder, llm, patches, visual) for s in stages)
        if llm is not None and asked is not None:
            read = asked.images_read * visual + asked.text_tokens
            answering = 2.0 * encoder * patches * asked.images + 2.0 * llm * read
    shown = _encoded_images(plan, stages, taught, asked)
    tuned = ([encoder] if plan.joint else []) + ([llm] if recipe.llm.train == "full" else [])
    rate = _cpu_flops(recipe.training.precision) if (flops or answering) and on_cpu else None
    return RunEstimate(
        training_seconds=flops / rate / _TRAINING_EFFICIENCY if flops and rate else None,
        task_seconds=answering / rate / _TASK_EFFICIENCY if answering and rate else None,
        test_samples=None if asked is None else asked.samples,
        memory_bytes=memory,
        disk_bytes=None if None in tuned else 16 * sum(count or 0 for count in tuned),
        encoded_images=shown,
        feature_bytes=_feature_bytes(plan, shown, patches),
        training_flops=flops,
        visual_tokens=visual,
        unknown=tuple(reason for reason, count in reasons.items() if count is None),
    )


@functools.cache
def _counted(
    data: str, task: str, recipe: TaskRecipe, split: Split, limit: int | None
) -> tuple[set[int | str], int]:
    """Return the images of a task's samples, and how many samples; scenes are not drawn."""
    flag = "--train-data" if split == "train" else "--data"
    if is_scenes(data):
        scenes, each = (
            getattr(parse_sizes(data, flag), split),
            _SCENE_QUESTIONS.get(recipe.source, 1),
        )
        samples = min(scenes * each, scenes * each if limit is None else limit)
        return set(range(math.ceil(samples / each))), samples
    folder = open_data(data, images_required=False, flag=flag)
    rows = folder.task_samples(task, recipe, split, limit)
    return set(rows.images()), len(rows)


def _training_images(plan: RunPlan) -> tuple[int | None, str]:
    """Return how many images training may show, or why it is not known."""
    if any(stage.mixture for stage in plan.adapter.stages):
        return None, "a mixture is not read for an estimate"
    images: set[int | str] = set()
    try:
        for name, recipe in plan.training_recipes.items():
            images |= _counted(plan.training_data, name, recipe, "train", None)[0]
    except EncoderBenchError as error:
        return None, f"the training data cannot be read: {error}"
    return len(images), ""


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


def _in_steps(stage: StageSettings, images: int | None) -> StageSettings:
    """Return a stage with its epochs as steps, where the number of images is known."""
    if stage.steps or images is None:
        return stage
    steps = math.ceil((stage.epochs or 1.0) * images / stage.images_per_step)
    return stage.model_copy(update={"steps": steps})


def _feature_bytes(plan: RunPlan, images: int | None, patches: int | None) -> int | None:
    """Return what the features of images take in the cache; None where their shape is unknown."""
    if images == 0:
        return 0
    width = find_spec(plan.encoder).width
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
            found, count = _counted(plan.data, name, recipe, "test", plan.limit)
            written = min(recipe.decoding.max_new_tokens, _TURN_TOKENS) * recipe.decoding.num_beams
            passes = 1 + len(set(recipe.controls) & set(ASKS_MODEL))
            images |= found
            samples += count
            read += passes * len(found)
            text = _TURN_TOKENS // 2 + written + 2 * len(recipe.candidates)
            tokens += passes * count * text
    except EncoderBenchError as error:
        return None, str(error)
    return _Questions(len(images), samples, read, tokens), ""


@functools.cache
def _llm_parameters(name: str) -> int | None:
    return _SMOLLM2_PARAMETERS if name == "smollm2-135m" else count_parameters(name)


_memory = functools.cache(estimate)


def _step_memory(
    plan: RunPlan, stage: StageSettings, encoder: int, patches: int, visual: int
) -> int | None:
    """Return the bytes of a stage's step; None without the language model's configuration."""
    images = stage.micro_batch_images or stage.images_per_step
    language = _memory(
        plan.adapter.llm,
        images=images,
        questions_per_image=stage.samples_per_image,
        visual_tokens=visual,
        question_tokens=_TURN_TOKENS // 2,
        answer_tokens=_TURN_TOKENS // 2,
        shared_prefix=plan.adapter.training.shared_prefix,
    )
    if language is None:
        return None
    total = sum(language) + 4 * encoder + _PROGRAM_BYTES
    if not plan.joint:
        return total
    spec = find_spec(plan.encoder)
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
    plan: RunPlan, stage: StageSettings, encoder: int, llm: int, patches: int, visual: int
) -> float:
    """Count 2 operations per parameter and token forward, and as many again for each gradient.

    A frozen encoder is counted once per image shown, as if no image were shown twice.

    Reference: Kaplan et al. 2020, section 2.1 (C = 6 N D; a frozen model behind a trained input
    needs no weight gradients, so 4 N D).
    """
    tuned = plan.adapter.llm.train == "full" and stage.llm is not None
    joint = plan.joint and stage.encoder is not None
    sequence = visual + stage.samples_per_image * _TURN_TOKENS
    image = (6 if tuned else 4) * llm * sequence + (6 if joint else 2) * encoder * patches
    return float(stage.images_per_step * (stage.steps or 0) * image)


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
