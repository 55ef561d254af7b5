"""AdamW and Muon over parts: what trains in a stage, at which learning rate, and its schedule."""

import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.recipes import PartOptimizer, StageSettings
from encoder_bench.mllm.model import MLLM

_CONTAINER = re.compile(
    r"(?:(?:dense_)?stages?|levels?|layers?|(?:res)?blocks?|denseblock|denselayer)(\d*)|[sb](\d+)"
)
"""What libraries call a stack of blocks or of stages, with its number or before it."""
_ONE_OF_SEVERAL = re.compile(r"backbone\.\d+\.backbone\.")
_STAGE_AND_BLOCK = 2


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


def make_optimizer(mllm: MLLM, stage: StageSettings) -> torch.optim.Optimizer:
    """Return one optimizer over the trainable parameters of the stage's parts, in a fixed order.

    It is AdamW; of parts with `optimizer = "muon"` the matrices have Muon, whose updates are scaled
    so that a learning rate means what it does for AdamW. Biases and one-dimensional parameters
    (norms, class tokens) have no weight decay. Under `layer_decay` d a learning rate is times d to
    the power of `decays`.

    Reference: Loshchilov and Hutter 2019 (arXiv 1711.05101); Jordan 2024, Muon; its scale as in Liu
    et al. 2025 (arXiv 2502.16982, eq. 4); layer-wise decay as in BEiT (arXiv 2106.08254, appendix).
    """
    groups: dict[tuple[str, bool, float, float], dict[str, Any]] = {}
    for part, settings in _part_settings(stage).items():
        named = dict(mllm.parts()[part].named_parameters())
        powers = decays(list(named))
        for name, parameter in named.items():
            if not parameter.requires_grad:
                continue
            muon = settings.optimizer == "muon" and parameter.ndim == 2 and "embed" not in name
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            scale = settings.layer_decay ** powers[name]
            peak = settings.learning_rate * scale
            group = {"params": [], "weight_decay": decay, "peak": peak, "part": part}
            groups.setdefault((part, muon, decay, scale), group)["params"].append(parameter)
    adamw = [group for (_, muon, *_), group in groups.items() if not muon]
    made: list[torch.optim.Optimizer] = []
    if adamw:
        made.append(torch.optim.AdamW(adamw, lr=0.0, betas=stage.betas, fused=True))
    if muon_groups := [group for (_, muon, *_), group in groups.items() if muon]:
        made.append(torch.optim.Muon(muon_groups, lr=0.0, adjust_lr_fn="match_rms_adamw"))
    return made[0] if len(made) == 1 else _Several(made)


def decays(names: Sequence[str]) -> dict[str, int]:
    """Return how often the layer-wise decay applies to each parameter of a part.

    Block i of n has n - i, what comes before the blocks n + 1, and what comes after them 0. Blocks
    count through all stages of a hierarchical model, in the order of `names`, and what stands
    between two belongs to the first; encoders that are used together count each its own.

    >>> decays(["stem.weight", "stages.0.blocks.0.w", "stages.1.blocks.0.w", "norm.weight"])
    {'stem.weight': 3, 'stages.0.blocks.0.w': 2, 'stages.1.blocks.0.w': 1, 'norm.weight': 0}
    """
    models = defaultdict(list)
    for name in names:
        own = _ONE_OF_SEVERAL.match(name)
        models[own.group() if own else ""].append(name)
    found: dict[str, int] = {}
    for model, members in models.items():
        blocks = [_block(name.removeprefix(model)) for name in members]
        order = {block: place for place, block in enumerate(dict.fromkeys(filter(None, blocks)))}
        last = max((place for place, block in enumerate(blocks) if block), default=-1)
        power = len(order) + 1
        for place, (name, block) in enumerate(zip(members, blocks, strict=True)):
            power = min(power, len(order) - order[block]) if block else power
            found[name] = power if place <= last else 0
    return found


def _block(name: str) -> tuple[int, ...]:
    """Return the numbers of a parameter's stage and block; empty where it is in none."""
    numbers: list[int] = []
    inside = False
    for part in name.split("."):
        container = _CONTAINER.fullmatch(part)
        if inside and part.isdecimal():
            numbers.append(int(part))
        elif container:
            inside = True
            numbers += [int(number) for number in container.groups() if number]
        elif inside:
            break
    return tuple(numbers[:_STAGE_AND_BLOCK])


class _Several(torch.optim.Optimizer):
    """Optimizers of different parameters as one."""

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        self.members = members
        super().__init__([group for member in members for group in member.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Let each do a step."""
        for member in self.members:
            member.step(closure)
        self.state = defaultdict(dict, {p: s for m in self.members for p, s in m.state.items()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, each member its part."""
        super().load_state_dict(state_dict)
        groups = iter(self.param_groups)
        for member in self.members:
            member.param_groups = [next(groups) for _ in member.param_groups]
            held = [p for group in member.param_groups for p in group["params"]]
            member.state = defaultdict(dict, {p: self.state[p] for p in held if p in self.state})


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
