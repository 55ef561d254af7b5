"""How training meets `accelerate launch`: processes, and experiment trackers.

What belongs here: making the accelerator and refusing what this loop does not do. Precision is
the recipe's, not the launcher's, because it changes scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env

from encoder_bench.base.errors import MissingDependencyError, TrainingError, UnknownNameError
from encoder_bench.base.recipes import AdapterRecipe
from encoder_bench.training.sharding import asks_for_shards

_KINDS = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
}


def make_accelerator(
    device: torch.device, adapter: AdapterRecipe, folder: Path, trackers: Sequence[str]
) -> Accelerator:
    """Return the accelerator of this process, with its trackers started.

    Args:
        device: of the model; only its type matters here.
        adapter: logged as the trackers' configuration.
        folder: where trackers that write files put them.
        trackers: names that accelerate knows.

    Raises:
        TrainingError: launched in a way that is not supported (DeepSpeed, offloaded parameters).
        UnknownNameError: no such tracker.
        MissingDependencyError: a tracker's package is not installed.
    """
    from accelerate.utils import LoggerType

    names = [kind.value for kind in LoggerType]
    for name in trackers:
        if name not in names or name == "all":
            raise UnknownNameError("tracker", name, [n for n in names if n != "all"])
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        device_placement=False,
        log_with=list(trackers) or None,
        project_dir=folder / "trackers",
    )
    kind = accelerator.distributed_type
    if kind not in _KINDS:
        raise TrainingError(
            f"launched as {kind.value}, which is not supported; launch whole copies (accelerate "
            "launch --multi_gpu) or shards (accelerate launch --use_fsdp)"
        )
    if asks_for_shards(accelerator) and parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise TrainingError(
            "launched with --fsdp_offload_params true: shards stay on their devices here; set it "
            "to false"
        )
    started = {getattr(kind, "value", kind) for kind in accelerator.log_with}
    missing = [name for name in trackers if name not in started]
    if missing:
        raise MissingDependencyError(f"tracker '{missing[0]}': pip install {missing[0]}")
    if trackers:
        (folder / "trackers").mkdir(parents=True, exist_ok=True)
        accelerator.init_trackers("encoder-bench", config=_flat(adapter.model_dump(mode="json")))
    return accelerator


def _flat(recipe: Mapping[str, Any], above: str = "") -> dict[str, str | int | float | bool]:
    """Return a recipe's keys as `training.precision`, since trackers take no nested values."""
    flat: dict[str, str | int | float | bool] = {}
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for entry in value:
                flat |= _flat(entry, f"{above}{key}.{entry.get('name', '')}.")
        else:
            plain = isinstance(value, str | int | float | bool)
            flat[above + key] = value if plain else str(value)
    return flat
