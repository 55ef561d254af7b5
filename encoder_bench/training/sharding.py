"""Parameters in shards (FSDP2): for a model that does not fit on one device while it trains.

What belongs here: cutting a model into shards, and whole tensors out of shards and back. Shards are
torch's DTensors, one part of the first axis on each process. Who asks for them is the launcher
(`accelerate launch --use_fsdp`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from encoder_bench.mllm.model import MLLM

_BLOCK_LISTS = (nn.ModuleList, nn.Sequential)


def asks_for_shards(accelerator: Accelerator) -> bool:
    """Return whether these processes were launched with `--use_fsdp`.

    accelerate itself knows FSDP on accelerators only; CPU processes are told apart by what the
    launcher put into their environment.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        return True
    return accelerator.num_processes > 1 and bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def sharded_copy(mllm: MLLM, device: torch.device) -> MLLM:
    """Return a copy of `mllm` on `device`, its parameters cut over all processes.

    Each block of the language model is gathered while it computes and dropped afterwards, each
    block of an encoder that trains likewise; what lies between the blocks, and the projector,
    stays gathered through a step. A frozen encoder is kept whole on every process, since
    processes may differ in which images they find in the feature cache.

    Args:
        mllm: on the CPU; left as it is, so that it can take up the trained weights at the end.
        device: of this process.
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


@torch.no_grad()
def load_sharded(target: MLLM, sharded: MLLM) -> None:
    """Copy every parameter and buffer of `sharded` into the whole model that it was made from.

    Every process calls this together. Frozen weights are copied too, so that what is proved of
    `target` afterwards is true of what was trained.
    """
    found = dict(sharded.named_parameters()) | dict(sharded.named_buffers())
    for name, tensor in [*target.named_parameters(), *target.named_buffers()]:
        tensor.copy_(_whole(found[name]))


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return tensors with every shard replaced by the whole; every process calls this together.

    Args:
        tensors: plain ones, which are returned as they are, and shards.
        keep: whether this process wants them; else wholes are dropped one by one.
    """
    kept = {}
    for name, tensor in tensors.items():
        whole = _whole(tensor)
        if keep:
            kept[name] = whole.cpu() if isinstance(tensor, DTensor) else whole
    return kept


def cut_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """Return this process' part of a whole tensor, where `tensor` is a shard; else the whole.

    Every process has the same whole, so that nothing is sent.
    """
    if not isinstance(tensor, DTensor) or whole.shape != tensor.shape:
        return whole
    moved = whole.to(tensor.device)
    cut: Tensor = distribute_tensor(
        moved, tensor.device_mesh, tensor.placements, src_data_rank=None
    )
    return cut


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that lies on this process, sharing its memory."""
    if isinstance(tensor, DTensor):
        part: Tensor = tensor.to_local()
        return part
    return tensor


def _whole(tensor: Tensor) -> Tensor:
    if isinstance(tensor, DTensor):
        whole: Tensor = tensor.full_tensor()
        return whole
    return tensor


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the elements of the outermost lists of modules of one class: a model's layers."""
    for child in module.children():
        elements = list(child.children()) if isinstance(child, _BLOCK_LISTS) else []
        alike = len({type(element) for element in elements}) == 1
        if alike and len(elements) > 1 and any(True for _ in child.parameters()):
            yield from elements
        else:
            yield from _blocks(child)
