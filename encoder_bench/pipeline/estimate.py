"""What a run will cost, before it starts: time, memory and disk, from its plan alone.

What belongs here: arithmetic on parameter and token counts. No weights are loaded; the only thing
measured is a short matrix product, to learn how fast this machine multiplies.
"""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass
from typing import Any

from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.pipeline.plan import RunPlan

_ANSWER_TOKENS = 24
"""Tokens of one training prompt with its answer, about; scenes have 12, VQAv2 15, captions 30."""
_KNOWN_LLM_PARAMETERS = {"tiny-llama": 1_900_000, "smollm2-135m": 134_515_008}
"""SmolLM2's exactly (a test builds it); tiny-llama's to a tenth, its vocabulary decides."""
_PROGRAM_BYTES = 2**30
"""Python with its libraries, about."""
_EFFICIENCY = 0.35
"""Share of a large matrix product's rate that training and decoding reach, about."""


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """A rough cost, right to a factor of about three; None where a count is not known here.

    Attributes:
        encoder_parameters: of the encoder.
        llm_parameters: of the language model.
        visual_tokens: a sequence's image prefix, in tokens.
        training_images: images shown in training, repeats counted.
        training_flops: floating-point operations of training.
        seconds: of training, at the rate measured on this machine's CPU; None on other devices.
        memory_bytes: of one training step: weights, gradients, optimizer state, activations.
        disk_bytes: checkpoint and final weights of what trains.
        unknown: what could not be counted, and why.
    """

    encoder_parameters: int | None
    llm_parameters: int | None
    visual_tokens: int | None
    training_images: int | None
    training_flops: float | None
    seconds: float | None
    memory_bytes: int | None
    disk_bytes: int | None
    unknown: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the estimate as lines for a person; `n/a` where a count is not known."""
        rows = [
            ("training time", duration_text(self.seconds)),
            ("memory", size_text(self.memory_bytes)),
            ("disk", size_text(self.disk_bytes)),
            (
                "training",
                "n/a" if self.training_flops is None else f"{self.training_flops:.2g} FLOPs",
            ),
            ("visual tokens", "n/a" if self.visual_tokens is None else str(self.visual_tokens)),
        ]
        head = "estimated, to a factor of about three, tasks and controls not counted:"
        body = [f"  {name:<14} {value}" for name, value in rows]
        return [head, *body, *(f"  n/a because {reason}" for reason in self.unknown)]


def estimate_run(plan: RunPlan) -> RunEstimate:
    """Return the estimated cost of a plan.

    Raises:
        UnknownNameError: no such encoder.
    """
    from encoder_bench.encoders.registry import find_spec

    unknown: list[str] = []
    spec = find_spec(plan.encoder)
    encoder = spec.parameters
    if encoder is None:
        unknown.append(f"the parameter count of {plan.encoder} is known only once it is loaded")
    tokens = _patch_tokens(plan, unknown)
    llm = _llm_parameters(plan, unknown)
    steps = [stage.steps for stage in plan.adapter.stages]
    images: int | None = None
    if all(steps):
        pairs = zip(plan.adapter.stages, steps, strict=True)
        images = sum(stage.images_per_step * (count or 0) for stage, count in pairs)
    else:
        unknown.append("a stage is given in epochs, and the data is not read for an estimate")
    flops = None
    if encoder is not None and llm is not None and tokens is not None and images is not None:
        flops = _training_flops(plan, encoder, llm, tokens)
    on_cpu = _runs_on_cpu(plan.device)
    if not on_cpu:
        unknown.append("time is estimated on CPUs only")
    trained = _trained_parameters(plan, encoder, llm)
    return RunEstimate(
        encoder_parameters=encoder,
        llm_parameters=llm,
        visual_tokens=_visual_tokens(plan, tokens),
        training_images=images,
        training_flops=flops,
        seconds=_cpu_seconds(plan, flops) if flops is not None and on_cpu else None,
        memory_bytes=_memory(plan, encoder, tokens),
        disk_bytes=None if trained is None else 4 * trained * 4,
        unknown=tuple(unknown),
    )


def _runs_on_cpu(device: str) -> bool:
    if device != "auto":
        return device == "cpu"
    from encoder_bench.base.hardware import choose_device

    return choose_device("auto").type == "cpu"


def _patch_tokens(plan: RunPlan, unknown: list[str]) -> int | None:
    """Return N from the catalogue's resolution and patch size, or from `--resolution`."""
    from encoder_bench.encoders.registry import find_spec

    spec = find_spec(plan.encoder)
    resolution = plan.adapter.encoder.resolution or spec.resolution
    if not resolution or not spec.patch:
        unknown.append(f"the patch grid of {plan.encoder} is known only once it is loaded")
        return None
    return (resolution // spec.patch) ** 2


def _visual_tokens(plan: RunPlan, patch_tokens: int | None) -> int | None:
    """Return M where the recipe fixes it; otherwise N, which is an upper bound."""
    return plan.adapter.projector.visual_tokens or patch_tokens


def _llm_parameters(plan: RunPlan, unknown: list[str]) -> int | None:
    """Return the language model's parameters, counted from its configuration alone."""
    settings = plan.adapter.llm
    found = _KNOWN_LLM_PARAMETERS.get(settings.name) or _count_parameters(settings)
    if found is None:
        unknown.append(f"the configuration of {settings.name} is not on this machine")
    return found


@functools.cache
def _count_parameters(settings: LanguageModelSettings) -> int | None:
    from encoder_bench.mllm.loading import count_parameters

    return count_parameters(settings)


def _memory(plan: RunPlan, encoder: int | None, patch_tokens: int | None) -> int | None:
    """Return the bytes of the largest stage's step, of one process: weights, moments, activations.

    The feature cache is not reckoned with: a frozen encoder is counted with its weights.
    """
    if encoder is None or patch_tokens is None:
        return None
    recipe = plan.adapter
    needs = []
    for stage in recipe.stages:
        images = stage.micro_batch_images or stage.images_per_step
        language = _language_memory(
            recipe.llm,
            images,
            stage.samples_per_image,
            _visual_tokens(plan, patch_tokens) or patch_tokens,
            recipe.training.shared_prefix,
        )
        if language is None:
            return None
        needs.append(language + _encoder_memory(plan, encoder, patch_tokens, images))
    return max(needs) + _PROGRAM_BYTES


@functools.cache
def _language_memory(
    settings: LanguageModelSettings, images: int, questions: int, visual_tokens: int, shared: bool
) -> int | None:
    from encoder_bench.mllm.memory import estimate

    found = estimate(
        settings,
        images=images,
        questions_per_image=questions,
        visual_tokens=visual_tokens,
        question_tokens=_ANSWER_TOKENS // 2,
        answer_tokens=_ANSWER_TOKENS // 2,
        shared_prefix=shared,
    )
    return None if found is None else found.total


def _encoder_memory(plan: RunPlan, encoder: int, patch_tokens: int, images: int) -> int:
    """Return the encoder's weights, and where it trains its moments and activations too."""
    if not plan.joint:
        return 4 * encoder
    from encoder_bench.encoders.registry import find_spec
    from encoder_bench.mllm.memory import ADAMW_BYTES, Decoder, activation_bytes

    spec = find_spec(plan.encoder)
    width, depth = spec.width or 1024, spec.depth or 24
    blocks = Decoder(width, depth, num_attention_heads=max(1, width // 64))
    activations = activation_bytes(
        blocks,
        rows=images,
        length=patch_tokens,
        size=4,
        trained=True,
        masked=False,
        recomputed=plan.adapter.encoder.gradient_checkpointing,
    )
    return (4 + ADAMW_BYTES) * encoder + activations


def _trained_parameters(plan: RunPlan, encoder: int | None, llm: int | None) -> int | None:
    """Return how many parameters train, the projector's few millions aside."""
    if (plan.joint and encoder is None) or (plan.adapter.llm.train == "full" and llm is None):
        return None
    trained = encoder or 0 if plan.joint else 0
    return trained + (llm or 0 if plan.adapter.llm.train == "full" else 0)


def _training_flops(plan: RunPlan, encoder: int, llm: int, patch_tokens: int) -> float:
    """Count 2 operations a parameter and token forward, and as many again for each gradient.

    A frozen encoder is counted once an image shown, as if no image were shown twice.

    Reference: Kaplan et al. 2020, section 2.1 (C = 6 N D; a frozen model behind a trained input
    needs no weight gradients, so 4 N D).
    """
    visual, total = _visual_tokens(plan, patch_tokens) or 0, 0.0
    for stage in plan.adapter.stages:
        tuned = plan.adapter.llm.train == "full" and stage.llm is not None
        sequence = visual + stage.samples_per_image * _ANSWER_TOKENS
        joint = plan.joint and stage.encoder is not None
        image = (6 if tuned else 4) * llm * sequence + (6 if joint else 2) * encoder * patch_tokens
        total += stage.images_per_step * (stage.steps or 0) * image
    return total


def _cpu_seconds(plan: RunPlan, flops: float) -> float:
    return flops / (_cpu_flops(plan.adapter.training.precision) * _EFFICIENCY)


@functools.cache
def _cpu_flops(precision: str) -> float:
    """Measure matrix products in the precision of training, for about a fifth of a second.

    The quickest of them counts: on a busy machine the others were interrupted.
    """
    import torch

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
