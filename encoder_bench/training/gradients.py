"""The gradients of a step over processes: added up, measured, scaled.

What belongs here: the two ways in which gradients lie, whole on every process or in shards. What
is divided by what is `step.py`'s job and told in `docs/design/how-loss-is-normalised.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from encoder_bench.training.sharding import local

_BUCKET_ELEMENTS = 2**24

PartParameters = Mapping[str, Sequence[nn.Parameter]]
"""What trains in a stage, by part."""


class Gradients(Protocol):
    """The gradients of all parts, as a sum over all processes once `add_up` was called.

    Attributes:
        loss_factor: what a process's loss is multiplied by before its backward pass.
    """

    loss_factor: float

    def add_up(self) -> None:
        """Sum the gradients over processes."""

    def norms(self) -> dict[str, float]:
        """Return the L2 norm of each part's gradient."""

    def scale(self, factor: float) -> None:
        """Multiply all gradients by a factor."""


class WholeGradients:
    """Every process has all parameters; gradients are added up once a step.

    They are added up here rather than by a wrapper, so that a micro-batch is free to differ
    between processes.
    """

    loss_factor = 1.0

    def __init__(
        self, parameters: PartParameters, accelerator: Accelerator, device: torch.device
    ) -> None:
        """Keep the parameters; nothing is computed yet."""
        self._parameters, self._accelerator, self._device = parameters, accelerator, device

    def add_up(self) -> None:
        """Sum the gradients over processes; one that no process has stays None."""
        if self._accelerator.num_processes == 1:
            return
        everything = [p for part in self._parameters.values() for p in part]
        have = torch.tensor([p.grad is not None for p in everything], device=self._device)
        counts = self._sum(have.float()).tolist()
        used = [p for p, count in zip(everything, counts, strict=True) if count]
        for bucket in _buckets(used):
            flat = torch.cat([_gradient(p).reshape(-1) for p in bucket])
            pieces = torch.split(self._sum(flat), [p.numel() for p in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter).clone()

    def norms(self) -> dict[str, float]:
        """Return the L2 norm of each part's gradient."""
        return {part: _norm(_present(p)) for part, p in self._parameters.items()}

    def scale(self, factor: float) -> None:
        """Multiply all gradients by a factor."""
        torch._foreach_mul_([g for p in self._parameters.values() for g in _present(p)], factor)

    def _sum(self, value: Tensor) -> Tensor:
        summed: Tensor = self._accelerator.reduce(value, reduction="sum")
        return summed


class ShardedGradients:
    """Every process has a shard of each gradient, already averaged over processes by FSDP.

    An average of losses that were multiplied by the number of processes is their sum.
    """

    def __init__(
        self, parameters: PartParameters, accelerator: Accelerator, device: torch.device
    ) -> None:
        """Keep the parameters; nothing is computed yet."""
        self.loss_factor = float(accelerator.num_processes)
        self._parameters, self._accelerator, self._device = parameters, accelerator, device

    def add_up(self) -> None:
        """Do nothing: the backward pass has done it."""

    def norms(self) -> dict[str, float]:
        """Return the L2 norm of each part's gradient."""
        own = [_norm(self._shards(part)) ** 2 for part in self._parameters]
        squares = torch.tensor(own, dtype=torch.float64, device=self._device)
        total: Tensor = self._accelerator.reduce(squares, reduction="sum")
        return dict(zip(self._parameters, total.sqrt().tolist(), strict=True))

    def scale(self, factor: float) -> None:
        """Multiply all gradients by a factor."""
        torch._foreach_mul_([g for part in self._parameters for g in self._shards(part)], factor)

    def _shards(self, part: str) -> list[Tensor]:
        return [local(gradient) for gradient in _present(self._parameters[part])]


def _present(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Cut a list into runs of one dtype and of a bounded number of elements."""
    buckets: list[list[nn.Parameter]] = []
    elements = 0
    for parameter in parameters:
        same = buckets and buckets[-1][0].dtype == parameter.dtype
        if not same or elements + parameter.numel() > _BUCKET_ELEMENTS:
            buckets.append([])
            elements = 0
        buckets[-1].append(parameter)
        elements += parameter.numel()
    return buckets


def _norm(gradients: list[Tensor]) -> float:
    if not gradients:
        return 0.0
    norms = torch._foreach_norm(gradients)
    return float(torch.stack([norm.float() for norm in norms]).norm())
