"""Checkpoints of a pretraining run: one safetensors file, replaced in one step.

Modules' weights, the optimizers' moments, the generators' states and the loss curve are in one
file, so that a kill between two files cannot leave a mixture. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.files import atomic_path

FILE_NAME = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path,
    *,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    generator: torch.Generator,
    progress: dict[str, Any],
) -> None:
    """Write all that a run needs to resume exactly as if it had not stopped.

    `progress` is JSON: the run's identity, steps done, the loss curve.
    """
    tensors: dict[str, Tensor] = {
        f"module.{name}": value.detach().cpu().contiguous().clone()
        for name, value in module.state_dict().items()
    }
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer{number}.{index}.{name}"] = torch.as_tensor(value).cpu().clone()
    tensors["generator"] = generator.get_state()
    tensors["torch_generator"] = torch.get_rng_state()
    with atomic_path(folder / FILE_NAME) as temporary:
        save_file(tensors, temporary, metadata={"progress": json.dumps(progress)})


def load_checkpoint(
    folder: Path,
    *,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    generator: torch.Generator,
    identity: dict[str, Any],
) -> dict[str, Any] | None:
    """Restore a run in place and return its `progress`; None where there is no checkpoint.

    Raises:
        TrainingError: the file is damaged or belongs to a run with other settings.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            progress: dict[str, Any] = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{path}: damaged checkpoint ({error}); delete it to start again"
        ) from (error)
    if progress["identity"] != identity:
        raise TrainingError(
            f"{path}: belongs to a run with other settings; delete it or choose another folder"
        )
    module.load_state_dict(_under("module.", tensors))
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        for name, value in _under(f"optimizer{number}.", tensors).items():
            index, _, key = name.partition(".")
            state["state"].setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(state)
    generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["torch_generator"])
    return progress


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
