"""One optimizer step: forward and backward, normalise, guard, clip, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from encoder_bench.base.errors import TrainingError
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch
from encoder_bench.training.batches import MicroBatch
from encoder_bench.training.distributed import Gradients

_MAX_SHOWN_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did, over all processes.

    Attributes:
        loss: mean cross-entropy per answer token, nats.
        answer_tokens: tokens that the mean is over.
        norms: part -> L2 norm of its gradient, before clipping.
        split: whether memory ran out and the micro-batches were halved.
    """

    loss: float
    answer_tokens: int
    norms: dict[str, float]
    split: bool


@dataclass(frozen=True, slots=True)
class Stepper:
    """What the steps of one stage share.

    Attributes:
        mllm: the model, on its device.
        optimizer: over the stage's parameters.
        gradients: of the same parameters.
        bfloat16: compute under autocast.
        clip_norm: most L2 norm of all gradients together; None for no limit.
    """

    mllm: MLLM
    optimizer: torch.optim.Optimizer
    gradients: Gradients
    bfloat16: bool
    clip_norm: float | None

    def train_step(self, micro: Sequence[MicroBatch], *, where: str, seed: int) -> StepResult:
        """Do one step on this process's share of its images.

        The loss is the sum of the answer tokens' cross-entropies over the step divided by their
        number over all micro-batches and processes, so that it is the mean over the global batch,
        however that was cut.

        Args:
            micro: the micro-batches.
            where: stage and step, for errors.
            seed: of whatever is random in this step (dropout), so that a step is the same
                whether or not training was resumed.

        Raises:
            TrainingError: the loss or a gradient is not finite (names the samples; nothing has
                been changed), or one image alone does not fit into memory.
        """
        losses, ran = self._forward_backward(micro, where=where, seed=seed)
        taught = sum(m.batch.answer_tokens for m in micro)
        sums = torch.tensor([float(losses.sum()), taught], dtype=torch.float64)
        loss, tokens = self.gradients.reduce(sums.to(self._device)).tolist()
        self.gradients.sum_over_processes()
        norms = {part: norm / tokens for part, norm in self.gradients.norms().items()}
        norm = math.hypot(*norms.values())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise _non_finite(where, loss / tokens, norm, ran, losses)
        clip = 1.0 if self.clip_norm is None else min(1.0, self.clip_norm / (norm + 1e-6))
        self.gradients.scale(clip / tokens)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss / tokens, int(tokens), norms, len(ran) > len(micro))

    def _forward_backward(
        self, micro: Sequence[MicroBatch], *, where: str, seed: int
    ) -> tuple[Tensor, Sequence[MicroBatch]]:
        """Return each micro-batch's summed loss, on the CPU, and the micro-batches as they ran.

        Where memory runs out, the step starts again with halves.
        """
        idle = self._idle_passes(len(micro))
        while True:
            torch.manual_seed(seed + self.gradients.accelerator.process_index)
            try:
                losses = [self._backward(m.batch, weight=1.0) for m in micro]
                for _ in range(idle):
                    self._backward(micro[-1].batch, weight=0.0)
                return torch.stack(losses).cpu(), micro
            except RuntimeError as error:
                if not (
                    isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
                ):
                    raise
                if self.gradients.sharded:
                    raise TrainingError(
                        f"{where}: out of memory; processes that share shards cannot halve their "
                        "micro-batches one by one: lower micro_batch_images and run it again"
                    ) from error
                if all(len(m.sample_ids) == 1 for m in micro):
                    raise TrainingError(
                        f"{where}: out of memory with one image in a micro-batch; lower "
                        "samples_per_image or --visual-tokens, or set gradient_checkpointing"
                    ) from error
            self.optimizer.zero_grad(set_to_none=True)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            micro = [half for m in micro for half in m.halves()]

    def _idle_passes(self, own: int) -> int:
        """Return how many passes without effect this process adds to be in step with the others.

        Processes gather each other's shards in every pass, so all must do as many; without
        shards each does its own.
        """
        if not self.gradients.sharded:
            return 0
        count = torch.tensor([own], device=self._device)
        return int(self.gradients.accelerator.gather(count).max()) - own

    def _backward(self, batch: TrainingBatch, *, weight: float) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.bfloat16):
            loss: Tensor = self.mllm(batch.to(self._device))
        self.gradients.accelerator.backward(loss * (weight * self.gradients.loss_factor))
        return loss.detach().float()

    @property
    def _device(self) -> torch.device:
        return next(self.mllm.projector.parameters()).device


def _non_finite(
    where: str, loss: float, norm: float, micro: Sequence[MicroBatch], losses: Tensor
) -> TrainingError:
    """Name the samples of the micro-batches whose loss is not finite, else of all."""
    finite = torch.isfinite(losses).tolist()
    bad = [m for m, good in zip(micro, finite, strict=True) if not good] or list(micro)
    names = [name for m in bad for image in m.sample_ids for name in image]
    shown = ", ".join(names[:_MAX_SHOWN_SAMPLES])
    hidden = len(names) - _MAX_SHOWN_SAMPLES
    more = f" and {hidden} more" if hidden > 0 else ""
    return TrainingError(
        f"{where}: the loss is {loss:.4g} and the gradient norm {norm:.4g}; the batch held "
        f"{shown}{more}. Lower the learning rate, or look at these samples"
    )
