"""One optimizer step: forward, backward, the guard, clipping, the update.

What belongs here: what is done with the batches of one step, on one process or several. The order
of steps and what is kept of them is `loop.py`'s job.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from encoder_bench.base.errors import TrainingError
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch
from encoder_bench.training.batches import MicroBatch, StepBatches
from encoder_bench.training.gradients import (
    Gradients,
    PartParameters,
    ShardedGradients,
    WholeGradients,
)

_SHOWN_SAMPLES = 16


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
    is the mean over the global batch, however it was cut.
    """

    def __init__(
        self,
        mllm: MLLM,
        optimizer: torch.optim.Optimizer,
        parameters: PartParameters,
        accelerator: Accelerator,
        *,
        device: torch.device,
        bfloat16: bool,
        clip_norm: float | None,
        sharded: bool = False,
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
            sharded: the model's parameters are cut over the processes.
        """
        self._mllm, self._optimizer, self._accelerator = mllm, optimizer, accelerator
        self._device, self._bfloat16, self._clip_norm = device, bfloat16, clip_norm
        self._sharded = sharded
        kind = ShardedGradients if sharded else WholeGradients
        self._gradients: Gradients = kind(parameters, accelerator, device)

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
        self._gradients.add_up()
        norms = {part: norm / tokens for part, norm in self._gradients.norms().items()}
        norm = math.hypot(*norms.values())
        if not (math.isfinite(total) and math.isfinite(norm)):
            self._optimizer.zero_grad(set_to_none=True)
            raise _non_finite(where, total / tokens, norm, micro, losses)
        scale = 1.0 if self._clip_norm is None else min(1.0, self._clip_norm / (norm + 1e-6))
        self._gradients.scale(scale / tokens)
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
        passes = self._most_passes(micro)
        while True:
            torch.manual_seed(seed + self._accelerator.process_index)
            try:
                losses = [self._backward(m.batch) for m in micro]
                for _ in range(passes - len(micro)):
                    self._backward(micro[-1].batch, weight=0.0)
                return torch.stack(losses).cpu(), micro
            except RuntimeError as error:
                if not (
                    isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
                ):
                    raise
                if self._sharded:
                    raise TrainingError(
                        f"{where}: out of memory; processes that share shards cannot halve their "
                        "micro-batches one by one: lower micro_batch_images and run it again"
                    ) from error
                if all(len(m.batch.dialogues) == 1 for m in micro):
                    raise TrainingError(
                        f"{where}: out of memory with one image in a micro-batch; lower "
                        "samples_per_image or --visual-tokens, or set gradient_checkpointing"
                    ) from error
            self._optimizer.zero_grad(set_to_none=True)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            micro = [half for m in micro for half in halves(m)]

    def _most_passes(self, micro: Sequence[MicroBatch]) -> int:
        """Return how many micro-batches the busiest process has.

        Processes gather each other's shards in every pass, so all must do as many; without
        shards each does its own.
        """
        if not self._sharded:
            return len(micro)
        count = torch.tensor([len(micro)], device=self._device)
        return int(self._accelerator.gather(count).max())

    def _backward(self, batch: TrainingBatch, *, weight: float = 1.0) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            loss: Tensor = self._mllm(batch.to(self._device))
        self._accelerator.backward(loss * (weight * self._gradients.loss_factor))
        return loss.detach().float()

    def _sum(self, value: Tensor) -> Tensor:
        summed: Tensor = self._accelerator.reduce(value, reduction="sum")
        return summed


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
