"""The training loop: stages of steps, each step normalised by its answer tokens.

What belongs here: `train`, and the step, the guard and the story that it keeps. Batches, order,
optimizer and checkpoints have files of their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from encoder_bench.data.sample import Sample
from encoder_bench.errors import TrainingError
from encoder_bench.hashing import hash_json, hash_text
from encoder_bench.mllm.model import MLLM
from encoder_bench.progress import Reporter
from encoder_bench.recipes import AdapterRecipe, StageSettings, TaskRecipe
from encoder_bench.training.batches import BatchMaker, Prefetcher, StepBatches
from encoder_bench.training.checkpoint import (
    Resume,
    latest_checkpoint,
    remove_checkpoints,
    restore_optimizer,
    restore_weights,
    save_checkpoint,
)
from encoder_bench.training.optimizer import (
    make_optimizer,
    part_settings,
    schedule,
    set_learning_rates,
)
from encoder_bench.training.order import StageOrder, group_by_image

_SHOWN_SAMPLES = 8


@dataclass(slots=True)
class TrainingSummary:
    """What happened in training.

    Attributes:
        losses: mean loss a token (nats) of every step, all stages.
        gradient_norms: part -> (first, last) L2 norm of its gradient, before clipping.
        steps: optimizer steps of each stage.
        images: images shown, repeats counted.
        answer_tokens: tokens taught.
        seconds: spent in steps, resumed parts included.
        waited_seconds: of these, spent waiting for batches.
    """

    losses: list[float] = field(default_factory=list)
    gradient_norms: dict[str, tuple[float, float]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    images: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object, with rates."""
        return {
            "losses": self.losses,
            "gradient_norms": {part: list(pair) for part, pair in self.gradient_norms.items()},
            "steps": self.steps,
            "images": self.images,
            "answer_tokens": self.answer_tokens,
            "seconds": round(self.seconds, 3),
            "waited_seconds": round(self.waited_seconds, 3),
            "images_per_second": round(self.images / self.seconds, 3) if self.seconds else None,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainingSummary:
        """Return the summary that `as_json` wrote."""
        return cls(
            losses=list(content["losses"]),
            gradient_norms={k: (v[0], v[1]) for k, v in content["gradient_norms"].items()},
            steps=dict(content["steps"]),
            images=content["images"],
            answer_tokens=content["answer_tokens"],
            seconds=content["seconds"],
            waited_seconds=content["waited_seconds"],
        )


def train(
    mllm: MLLM,
    samples: Sequence[Sample],
    adapter: AdapterRecipe,
    tasks: Mapping[str, TaskRecipe],
    *,
    folder: Path,
    seed: int,
    reporter: Reporter,
    device: torch.device,
    features: Mapping[Path, Tensor] | None = None,
) -> TrainingSummary:
    """Train the parts that `set_trainable` left open, stage by stage.

    A step's loss is the sum of its answer tokens' cross-entropies divided by their number over
    the whole step, however it is cut into micro-batches and processes. Killed, it goes on from
    the last checkpoint in `folder` with the same images in the same order, on CPUs bit for bit.

    Args:
        mllm: on `device`, with its parts frozen or open.
        samples: training samples of all tasks.
        adapter: the recipe.
        tasks: recipes of the tasks that are trained on, for their prompts.
        folder: where checkpoints go.
        seed: of the order.
        reporter: where progress goes.
        device: of the model.
        features: the frozen encoder's patch tokens by image path, or None.

    Raises:
        TrainingError: nothing to train, no samples, a non-finite loss (names the samples), or a
            checkpoint of another recipe.
        EncoderBenchError: a checkpoint cannot be written.
    """
    precision = "bf16" if adapter.training.precision == "bfloat16" else "no"
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    identity = _identity(adapter, samples, seed)
    found = latest_checkpoint(folder, identity)
    summary, first_stage, first_step = TrainingSummary(), 0, 0
    if found is not None:
        checkpoint, resume = found
        restore_weights(mllm, checkpoint)
        summary = TrainingSummary.from_json(resume.history)
        first_stage, first_step = resume.stage, resume.step
        reporter.note(f"resuming from {checkpoint.name}")
    torch.manual_seed(seed)
    for number, stage in enumerate(adapter.stages):
        if number < first_stage:
            continue
        run = _Stage(mllm, samples, adapter, tasks, stage, number, accelerator, seed, features)
        if found is not None and number == first_stage:
            restore_optimizer(run.optimizer, found[0])
        start = first_step if number == first_stage else 0
        run.go(start, summary, folder=folder, identity=identity, reporter=reporter)
    remove_checkpoints(folder)
    return summary


class _Stage:
    """One stage: its images, batches, optimizer and steps."""

    def __init__(
        self,
        mllm: MLLM,
        samples: Sequence[Sample],
        adapter: AdapterRecipe,
        tasks: Mapping[str, TaskRecipe],
        stage: StageSettings,
        number: int,
        accelerator: Accelerator,
        seed: int,
        features: Mapping[Path, Tensor] | None,
    ) -> None:
        self._mllm, self._stage, self._number = mllm, stage, number
        self._accelerator, self._training = accelerator, adapter.training
        groups = group_by_image(samples, stage.tasks)
        if not groups:
            raise TrainingError(f"stage '{stage.name}': no samples of {', '.join(stage.tasks)}")
        self.steps = stage.steps or math.ceil(
            (stage.epochs or 1.0) * len(groups) / stage.images_per_step
        )
        self._order = StageOrder(
            groups,
            stage=f"{number}/{stage.name}",
            seed=seed,
            images_per_step=stage.images_per_step,
            samples_per_image=stage.samples_per_image,
        )
        self._maker = BatchMaker(
            mllm,
            tasks,
            micro_batch_images=stage.micro_batch_images or stage.images_per_step,
            shared_prefix=adapter.training.shared_prefix,
            features=features,
        )
        self.optimizer = make_optimizer(mllm, stage)
        self._parameters = {
            part: [p for p in mllm.parts()[part].parameters() if p.requires_grad]
            for part in part_settings(stage)
        }
        empty = [part for part, parameters in self._parameters.items() if not parameters]
        if empty:
            raise TrainingError(f"stage '{stage.name}': nothing to train in the {empty[0]}")

    def go(
        self,
        start: int,
        summary: TrainingSummary,
        *,
        folder: Path,
        identity: str,
        reporter: Reporter,
    ) -> None:
        """Do the steps from `start` on, with a checkpoint every so often."""
        self._mllm.train()
        batches = Prefetcher(self._batches, start, self.steps)
        with reporter.phase(f"training ({self._stage.name})", self.steps, "steps") as phase:
            phase.advance(start)
            for step, batch in batches:
                began = time.perf_counter()
                loss = self._step(step, batch, summary)
                summary.seconds += time.perf_counter() - began
                summary.losses.append(loss)
                summary.images += self._stage.images_per_step
                summary.answer_tokens += batch.answer_tokens
                summary.steps[self._stage.name] = step + 1
                rate = self.optimizer.param_groups[0]["lr"]
                phase.advance(loss=f"{loss:.3f}", rate=f"{rate:.2g}")
                done = step + 1
                if done % self._training.checkpoint_every == 0 or done == self.steps:
                    summary.waited_seconds += batches.waited_seconds
                    batches.waited_seconds = 0.0
                    self._save(done, summary, folder, identity)
        self._mllm.eval()

    def _batches(self, step: int) -> StepBatches:
        images = self._order.step(step)
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        return self._maker.make(images[rank::world])

    def _step(self, step: int, batches: StepBatches, summary: TrainingSummary) -> float:
        """Do one optimizer step and return its mean loss a token over all processes."""
        device = self._accelerator.device
        tokens = self._sum(torch.tensor(float(batches.answer_tokens), device=device))
        total = torch.zeros((), device=device)
        for batch, sample_ids in zip(batches.micro, batches.sample_ids, strict=True):
            with self._accelerator.autocast():
                loss = self._mllm.loss(batch.to(device)).total
            if not torch.isfinite(loss):
                raise _non_finite(self._stage.name, step, loss.item(), sample_ids)
            self._accelerator.backward(loss / tokens)
            total += loss.detach().float()
        self._reduce_gradients()
        norms = {part: _norm(parameters) for part, parameters in self._parameters.items()}
        for part, norm in norms.items():
            first = summary.gradient_norms.get(part, (norm, norm))[0]
            summary.gradient_norms[part] = (first, norm)
        everything = [p for parameters in self._parameters.values() for p in parameters]
        if self._stage.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(everything, self._stage.clip_norm)
        set_learning_rates(self.optimizer, schedule(step, self.steps, self._stage))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float((self._sum(total) / tokens).item())

    def _sum(self, value: Tensor) -> Tensor:
        summed: Tensor = self._accelerator.reduce(value, reduction="sum")
        return summed

    def _reduce_gradients(self) -> None:
        """Add up the processes' gradients; each holds its share of the step's mean."""
        if self._accelerator.num_processes == 1:
            return
        for parameters in self._parameters.values():
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad = self._sum(parameter.grad)

    def _save(self, done: int, summary: TrainingSummary, folder: Path, identity: str) -> None:
        if not self._accelerator.is_main_process:
            return
        save_checkpoint(
            folder,
            self._mllm,
            self.optimizer,
            Resume(self._number, done, summary.as_json()),
            identity=identity,
            keep=self._training.keep_checkpoints,
        )


def _non_finite(stage: str, step: int, loss: float, sample_ids: Sequence[str]) -> TrainingError:
    shown = ", ".join(sample_ids[:_SHOWN_SAMPLES])
    more = (
        f" and {len(sample_ids) - _SHOWN_SAMPLES} more" if len(sample_ids) > _SHOWN_SAMPLES else ""
    )
    return TrainingError(
        f"stage '{stage}', step {step}: the loss is {loss}; the batch held {shown}{more}. "
        "Lower the learning rate, or look at these samples"
    )


def _norm(parameters: Sequence[Tensor]) -> float:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    return float(torch.stack([g.float().norm() for g in gradients]).norm().item())


def _identity(adapter: AdapterRecipe, samples: Sequence[Sample], seed: int) -> str:
    recipe = adapter.model_dump(mode="json", exclude={"description": True})
    return hash_text(hash_json(recipe), str(seed), *(sample.sample_id for sample in samples))
