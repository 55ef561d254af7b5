"""One optimizer step: forward, backward, the guard, clipping, the update.

What belongs here: what is done with the batches of one step, on one process or several. The order
of steps and what is kept of them is `loop.py`'s job.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from encoder_bench.errors import TrainingError
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch
from encoder_bench.training.batches import MicroBatch, StepBatches

_SHOWN_SAMPLES = 16
_BUCKET_ELEMENTS = 2**24


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did, over all processes.

    Attributes:
        loss: mean cross-entropy a token, nats.
        answer_tokens: tokens that the mean is over.
        norms: part -> L2 norm of its gradient, before clipping.
        split: whether memory ran out and the micro-batches were halved.
    """

    loss: float
    answer_tokens: int
    norms: dict[str, float]
    split: bool


class Stepper:
    """Does the steps of one stage.

    The loss is the sum over all answer tokens of the step, and the gradients are divided by the
    number of these tokens over all micro-batches and processes, once, at the end. So the result
    is the mean over the global batch, however it was cut. Gradients are added up over processes
    here rather than by a wrapper, so that a micro-batch is free to differ between processes.
    """

    def __init__(
        self,
        mllm: MLLM,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, Sequence[nn.Parameter]],
        accelerator: Accelerator,
        *,
        device: torch.device,
        bfloat16: bool,
        clip_norm: float | None,
    ) -> None:
        """Keep what every step needs.

        Args:
            mllm: the model, on `device`.
            optimizer: over the parameters.
            parameters: what trains in this stage, by part.
            accelerator: knows the processes.
            device: of the model.
            bfloat16: compute under autocast.
            clip_norm: most L2 norm of all gradients together; None for no limit.
        """
        self._mllm, self._optimizer, self._parameters = mllm, optimizer, parameters
        self._accelerator, self._device = accelerator, device
        self._bfloat16, self._clip_norm = bfloat16, clip_norm

    def step(self, batches: StepBatches, *, where: str, seed: int) -> StepResult:
        """Do one optimizer step on this process's share of its images.

        Args:
            batches: the micro-batches.
            where: stage and step, for errors.
            seed: of whatever is random in this step (dropout), so that a step is the same
                whether or not it was resumed.

        Raises:
            TrainingError: the loss or a gradient is not finite (names the samples; nothing has
                been changed), or one image alone does not fit into memory.
        """
        losses, micro = self._accumulate(batches.micro, where=where, seed=seed)
        sums = torch.tensor([float(losses.sum()), batches.answer_tokens], dtype=torch.float64)
        total, tokens = self._sum(sums.to(self._device)).tolist()
        self._add_up_gradients()
        norms = {part: _norm(p) / tokens for part, p in self._parameters.items()}
        norm = math.hypot(*norms.values())
        if not (math.isfinite(total) and math.isfinite(norm)):
            self._optimizer.zero_grad(set_to_none=True)
            raise _non_finite(where, total / tokens, norm, micro, losses)
        scale = 1.0 if self._clip_norm is None else min(1.0, self._clip_norm / (norm + 1e-6))
        torch._foreach_mul_(self._gradients(), scale / tokens)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(total / tokens, int(tokens), norms, len(micro) > len(batches.micro))

    def _accumulate(
        self, micro: Sequence[MicroBatch], *, where: str, seed: int
    ) -> tuple[Tensor, Sequence[MicroBatch]]:
        """Run forward and backward; where memory runs out, begin again with halves.

        Returns:
            The summed loss of each micro-batch, on the CPU, and the micro-batches as they ran.
        """
        while True:
            torch.manual_seed(seed + self._accelerator.process_index)
            try:
                return torch.stack([self._backward(m.batch) for m in micro]).cpu(), micro
            except torch.OutOfMemoryError as error:
                if all(len(m.batch.dialogues) == 1 for m in micro):
                    raise TrainingError(
                        f"{where}: out of memory with one image in a micro-batch; lower "
                        "samples_per_image or --visual-tokens, or set gradient_checkpointing"
                    ) from error
            self._optimizer.zero_grad(set_to_none=True)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            micro = [half for m in micro for half in halves(m)]

    def _backward(self, batch: TrainingBatch) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            loss = self._mllm(batch.to(self._device)).total
        self._accelerator.backward(loss)
        detached: Tensor = loss.detach().float()
        return detached

    def _gradients(self) -> list[Tensor]:
        return [p.grad for part in self._parameters.values() for p in part if p.grad is not None]

    def _sum(self, value: Tensor) -> Tensor:
        summed: Tensor = self._accelerator.reduce(value, reduction="sum")
        return summed

    def _add_up_gradients(self) -> None:
        """Sum the gradients over processes; one that no process has stays None."""
        if self._accelerator.num_processes == 1:
            return
        everything = [p for part in self._parameters.values() for p in part]
        have = torch.tensor([p.grad is not None for p in everything], device=self._device)
        used = [
            p
            for p, count in zip(everything, self._sum(have.float()).tolist(), strict=True)
            if count
        ]
        for bucket in _buckets(used):
            flat = torch.cat([_gradient(p).reshape(-1) for p in bucket])
            pieces = torch.split(self._sum(flat), [p.numel() for p in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter).clone()


def halves(micro: MicroBatch) -> list[MicroBatch]:
    """Return a micro-batch as two of half its images, or itself where it has but one."""
    batch = micro.batch
    middle = len(batch.dialogues) // 2
    if middle == 0:
        return [micro]

    def cut(part: slice) -> MicroBatch:
        return MicroBatch(
            replace(
                batch,
                dialogues=batch.dialogues[part],
                pixels=None if batch.pixels is None else batch.pixels[part],
                features=None if batch.features is None else batch.features[part],
            ),
            micro.sample_ids[part],
        )

    return [cut(slice(0, middle)), cut(slice(middle, None))]


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


def _norm(parameters: Sequence[nn.Parameter]) -> float:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norms = torch._foreach_norm(gradients)
    return float(torch.stack([norm.float() for norm in norms]).norm())


def _non_finite(
    where: str, loss: float, norm: float, micro: Sequence[MicroBatch], losses: Tensor
) -> TrainingError:
    """Name the samples of the micro-batches whose loss is not finite, else of all."""
    finite = torch.isfinite(losses).tolist()
    bad = [m for m, good in zip(micro, finite, strict=True) if not good] or list(micro)
    names = [name for m in bad for image in m.sample_ids for name in image]
    shown = ", ".join(names[:_SHOWN_SAMPLES])
    more = f" and {len(names) - _SHOWN_SAMPLES} more" if len(names) > _SHOWN_SAMPLES else ""
    return TrainingError(
        f"{where}: the loss is {loss:.4g} and the gradient norm {norm:.4g}; the batch held "
        f"{shown}{more}. Lower the learning rate, or look at these samples"
    )
