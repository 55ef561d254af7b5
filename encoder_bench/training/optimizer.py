"""AdamW over parts: what trains in a stage, at which learning rate, and how that changes."""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.recipes import PartOptimizer, StageSettings
from encoder_bench.mllm.model import MLLM

_BLOCK = re.compile(r"\.(?:layers?|blocks|resblocks)\.(\d+)\.")


def _part_settings(stage: StageSettings) -> dict[str, PartOptimizer]:
    settings = {"encoder": stage.encoder, "projector": stage.projector, "llm": stage.llm}
    return {name: value for name, value in settings.items() if value is not None}


@contextlib.contextmanager
def only_parts(mllm: MLLM, stage: StageSettings) -> Iterator[dict[str, list[nn.Parameter]]]:
    """Freeze, for one stage, the open parts that have no optimizer in it.

    Yields:
        The stage's trainable parameters by part. Afterwards all that was open is open again.

    Raises:
        TrainingError: nothing would train.
    """
    opened = {
        name: [p for p in part.parameters() if p.requires_grad]
        for name, part in mllm.parts().items()
    }
    used = {name: opened[name] for name in _part_settings(stage) if opened[name]}
    if not used:
        raise TrainingError(
            f"stage '{stage.name}': nothing to train; give an optimizer to a part that has "
            "parameters and is not frozen"
        )
    closed = [p for name in opened.keys() - used.keys() for p in opened[name]]
    for parameter in closed:
        parameter.requires_grad_(False)
    try:
        yield used
    finally:
        for parameter in closed:
            parameter.requires_grad_(True)


def make_optimizer(mllm: MLLM, stage: StageSettings) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters of the stage's parts, in a fixed order.

    Biases and one-dimensional parameters (norms, class tokens) have no weight decay. Under
    `layer_decay` d, block i of n has its learning rate times d^(n - i), embeddings d^(n + 1).

    Reference: Loshchilov and Hutter 2019 (arXiv 1711.05101); layer-wise decay as in BEiT
    (arXiv 2106.08254, appendix).
    """
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    for part, settings in _part_settings(stage).items():
        named = list(mllm.parts()[part].named_parameters())
        blocks = [int(match.group(1)) for name, _ in named if (match := _BLOCK.search(name))]
        depth = max(blocks, default=-1) + 1
        for name, parameter in named:
            if not parameter.requires_grad:
                continue
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            below = depth + 1 if "embed" in name or "patch" in name else 0
            block = _BLOCK.search(name)
            scale = settings.layer_decay ** (depth - int(block.group(1)) if block else below)
            peak = settings.learning_rate * scale
            group = {"params": [], "weight_decay": decay, "peak": peak, "part": part}
            groups.setdefault((part, decay, scale), group)["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=0.0, betas=stage.betas, fused=True)


def schedule(step: int, steps: int, stage: StageSettings) -> float:
    """Return the factor on the peak learning rate: linear warm-up, then half a cosine.

    >>> stage = StageSettings(name="s", tasks=("vqa",), steps=10, images_per_step=1,
    ...     projector=PartOptimizer(learning_rate=1.0), warmup_fraction=0.2)
    >>> [round(schedule(step, 10, stage), 3) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.038]
    """
    warmup = round(steps * stage.warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    floor = stage.final_learning_rate_fraction
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
