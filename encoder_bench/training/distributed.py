"""Training on several processes: whole copies or FSDP2 shards, as `accelerate launch` asks for.

Shards are torch's DTensors, one part of the first axis on each process. Precision is the recipe's,
not the launcher's, because it changes scores.
"""

import atexit
import copy
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, LoggerType, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from encoder_bench.base.errors import MissingDependencyError, TrainingError, UnknownNameError
from encoder_bench.base.recipes import AdapterRecipe
from encoder_bench.mllm.model import MLLM

_SUPPORTED = {"NO", "MULTI_CPU", "MULTI_GPU", "FSDP"}


def make_accelerator(
    device: torch.device, adapter: AdapterRecipe, folder: Path, trackers: Sequence[str]
) -> Accelerator:
    """Return the accelerator of this process, with its trackers started in `folder`.

    Raises:
        TrainingError: launched in a way that is not supported (DeepSpeed, offloaded parameters).
        UnknownNameError: no such tracker.
        MissingDependencyError: a tracker's package is not installed.
    """
    names = [kind.value for kind in LoggerType if kind.value != "all"]
    for name in trackers:
        if name not in names:
            raise UnknownNameError("tracker", name, names)
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:  # a notebook's earlier run had its own device
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        device_placement=False,
        log_with=list(trackers) or None,
        project_dir=folder / "trackers",
    )
    if accelerator.num_processes > 1:
        atexit.unregister(_let_gloo_finish)
        atexit.register(_let_gloo_finish)
    kind = accelerator.distributed_type.value
    if kind not in _SUPPORTED:
        raise TrainingError(
            f"launched as {kind}, which is not supported; launch whole copies (accelerate "
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
        name = "'encoder-bench[trackers]'" if missing[0] == "tensorboard" else missing[0]
        raise MissingDependencyError(f"tracker '{missing[0]}': pip install {name}")
    if trackers:
        (folder / "trackers").mkdir(parents=True, exist_ok=True)
        accelerator.init_trackers("encoder-bench", config=_tracked(adapter))
    return accelerator


def _let_gloo_finish() -> None:
    """Let gloo's threads free the tensors of the last collectives before Python ends.

    One that wants the interpreter after that aborts its process, which is then taken for failed.
    Destroying the group does not end them: caches of DTensor's keep it.

    Reference: pytorch/pytorch pull request 179291, "terminate called without an active exception".
    """
    time.sleep(0.3)


def _tracked(adapter: AdapterRecipe) -> dict[str, str | int | float | bool]:
    """Return a recipe's keys as `training.precision`, since trackers take no nested values."""
    from transformers.utils.generic import flatten_dict

    recipe = adapter.model_dump(mode="json")
    recipe["stages"] = {stage["name"]: stage for stage in recipe["stages"]}
    plain = str | int | float | bool
    return {k: v if isinstance(v, plain) else str(v) for k, v in flatten_dict(recipe).items()}


def asks_for_shards(accelerator: Accelerator) -> bool:
    """Return whether these processes were launched with `--use_fsdp`.

    accelerate itself knows FSDP on accelerators only; for CPU processes the launcher's environment
    says it.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        return True
    return accelerator.num_processes > 1 and bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def sharded_copy(mllm: MLLM, device: torch.device) -> MLLM:
    """Return a copy of `mllm` on `device`, its parameters cut over all processes.

    Each block of the language model is gathered while it computes and dropped afterwards, each
    block of an encoder that trains likewise; what lies between the blocks, and the projector,
    stays gathered through a step. A frozen encoder is kept whole on every process, since
    processes may differ in which images they find in the feature cache. `mllm` stays on the CPU as
    it is, for `load_sharded` at the end.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    working = copy.deepcopy(mllm)
    trains = any(parameter.requires_grad for parameter in working.encoder.parameters())
    whole = set() if trains else set(working.encoder.parameters())
    for part in [working.language.model, *([working.encoder] if trains else [])]:
        for block in _blocks(part):
            fully_shard(block, mesh=mesh)
    fully_shard(working, mesh=mesh, ignored_params=whole)
    working.encoder.to(device)
    return working


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the elements of the outermost lists of modules of one class: a model's layers."""
    for child in module.children():
        listed = isinstance(child, nn.ModuleList | nn.Sequential)
        elements = list(child.children()) if listed else []
        alike = len({type(element) for element in elements}) == 1
        if alike and len(elements) > 1 and any(True for _ in child.parameters()):
            yield from elements
        else:
            yield from _blocks(child)


@torch.no_grad()
def load_sharded(target: MLLM, sharded: MLLM) -> None:
    """Copy every parameter and buffer of `sharded` into the whole model that it was made from.

    Every process calls this together. Frozen weights are copied too, so that what is checked of
    `target` afterwards is true of what was trained.
    """
    found = dict(sharded.named_parameters()) | dict(sharded.named_buffers())
    for name, tensor in [*target.named_parameters(), *target.named_buffers()]:
        tensor.copy_(_whole(found[name]))


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return tensors with every shard replaced by the whole; every process calls this together.

    A process that does not `keep` them drops the wholes one by one.
    """
    kept = {}
    for name, tensor in tensors.items():
        whole = _whole(tensor)
        if keep:
            kept[name] = whole.cpu() if isinstance(tensor, DTensor) else whole
    return kept


def _whole(tensor: Tensor) -> Tensor:
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole


def cut_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """Return this process' part of a whole tensor, where `tensor` is a shard; else the whole.

    Every process has the same whole, so that nothing is sent.
    """
    if not isinstance(tensor, DTensor) or whole.shape != tensor.shape:
        return whole
    cut: Tensor = distribute_tensor(
        whole.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
    )
    return cut


class Gradients:
    """The gradients of a stage's parts, whole on every process or in shards.

    Whole gradients are added up here, once a step, rather than by a wrapper, so that a micro-batch
    is free to differ between processes. FSDP has averaged the shards after the backward pass; an
    average of losses that were multiplied by the number of processes is their sum.

    Attributes:
        loss_factor: what a process's loss is multiplied by before its backward pass.
    """

    def __init__(
        self,
        parameters: Mapping[str, Sequence[nn.Parameter]],
        accelerator: Accelerator,
        *,
        sharded: bool = False,
    ) -> None:
        self.accelerator, self.sharded = accelerator, sharded
        self.loss_factor = float(accelerator.num_processes) if sharded else 1.0
        self._parameters = parameters

    def sum_over_processes(self) -> None:
        """Sum whole gradients; one that no process has stays None."""
        if self.sharded or self.accelerator.num_processes == 1:
            return
        everything = [p for part in self._parameters.values() for p in part]
        have = torch.tensor([p.grad is not None for p in everything], device=everything[0].device)
        counts = self.reduce(have.float()).tolist()
        for parameter, count in zip(everything, counts, strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)

    def norms(self) -> dict[str, float]:
        """Return the L2 norm of each part's gradient."""
        norms = {}
        for part in self._parameters:
            each = torch._foreach_norm(self._local(part) or [torch.zeros(1)])
            norms[part] = float(torch.stack([norm.float() for norm in each]).norm())
        if not self.sharded:
            return norms
        squares = torch.tensor(list(norms.values()), dtype=torch.float64).square()
        return dict(zip(norms, self.reduce(squares).sqrt().tolist(), strict=True))

    def scale(self, factor: float) -> None:
        """Multiply all gradients by a factor."""
        torch._foreach_mul_([g for part in self._parameters for g in self._local(part)], factor)

    def reduce(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; with one process, the tensor itself."""
        if self.accelerator.num_processes == 1:
            return value
        here = value.to(self.accelerator.device)
        summed: Tensor = self.accelerator.reduce(here, reduction="sum")
        return summed

    def _local(self, part: str) -> list[Tensor]:
        """Return what of a part's gradients lies on this process, sharing its memory."""
        present = (p.grad for p in self._parameters[part] if p.grad is not None)
        return [g.to_local() if isinstance(g, DTensor) else g for g in present]
