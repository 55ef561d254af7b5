"""One stage of training: its images, its optimizer, its steps.

What belongs here: the course of a stage. What is kept through all stages is `state.py`'s job, one
step is `step.py`'s.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import nn

from encoder_bench.base.errors import DataError, TrainingError
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.recipes import StageSettings
from encoder_bench.mllm.model import MLLM
from encoder_bench.training.batches import BatchMaker, Prefetcher, StepBatches
from encoder_bench.training.checkpoint import restore_optimizer
from encoder_bench.training.optimizer import (
    make_optimizer,
    part_settings,
    schedule,
    set_learning_rates,
)
from encoder_bench.training.order import StageOrder, group_by_image
from encoder_bench.training.state import TrainingRun
from encoder_bench.training.step import Stepper, StepResult


class Stage:
    """One stage: its images, its optimizer, its steps."""

    def __init__(
        self,
        run: TrainingRun,
        number: int,
        stage: StageSettings,
        parameters: Mapping[str, list[nn.Parameter]],
    ) -> None:
        """Make order, batches and optimizer; nothing is computed yet.

        Args:
            run: what the stage is a part of.
            number: of the stage, from 0.
            stage: its settings.
            parameters: what trains in it, by part.

        Raises:
            TrainingError: no samples of its tasks, or fewer images in a step than processes.
        """
        self._run, self._number, self._settings = run, number, stage
        groups = group_by_image(run.samples, stage.tasks)
        if not groups:
            raise TrainingError(f"stage '{stage.name}': no samples of {', '.join(stage.tasks)}")
        processes = run.accelerator.num_processes
        if stage.images_per_step < processes:
            raise TrainingError(
                f"stage '{stage.name}': images_per_step {stage.images_per_step} is fewer than the "
                f"{processes} processes"
            )
        self._steps = stage.steps or math.ceil(
            (stage.epochs or 1.0) * len(groups) / stage.images_per_step
        )
        self._order = StageOrder(
            groups,
            stage=f"{number}/{stage.name}",
            seed=run.seed,
            images_per_step=stage.images_per_step,
            samples_per_image=stage.samples_per_image,
        )
        self._maker = BatchMaker(
            run.mllm,
            run.tasks,
            micro_batch_images=stage.micro_batch_images or stage.images_per_step,
            shared_prefix=run.adapter.training.shared_prefix,
            row_length=run.adapter.training.row_length,
            features=run.features,
            pin_memory=run.device.type == "cuda",
        )
        self._optimizer = make_optimizer(run.mllm, stage)
        self._stepper = Stepper(
            run.mllm,
            self._optimizer,
            parameters,
            run.accelerator,
            device=run.device,
            bfloat16=run.adapter.training.precision == "bfloat16",
            clip_norm=stage.clip_norm,
            sharded=run.sharded,
        )

    def run(self, checkpoint: Path | None, done: int) -> None:
        """Do the steps after the first `done`, with a checkpoint every so often.

        Args:
            checkpoint: to take the optimizer's state from; None at the beginning of a stage.
            done: steps that were done before.

        Raises:
            DataError: an image cannot be read.
            TrainingError: the loss is not finite, or one image does not fit into memory.
        """
        run, every = self._run, self._run.adapter.training.checkpoint_every
        if checkpoint is not None:
            restore_optimizer(self._optimizer, checkpoint)
        run.mllm.train()
        batches = Prefetcher(self._batches, done, self._steps)
        title = f"training ({self._settings.name})"
        try:
            with run.reporter.phase(title, self._steps, "steps") as phase:
                phase.advance(done)
                began, waited = time.perf_counter(), 0.0
                for step, batch in batches:
                    result = self._step(step, batch)
                    done = step + 1
                    run.summary.seconds += time.perf_counter() - began
                    run.summary.waited_seconds += batches.waited_seconds - waited
                    waited = batches.waited_seconds
                    rate = self._optimizer.param_groups[0]["lr"]
                    phase.advance(loss=f"{result.loss:.3f}", rate=f"{rate:.2g}")
                    if done % every == 0 or done == self._steps:
                        run.save(self._number, done, self._optimizer)
                    began = time.perf_counter()
        except (DataError, TrainingError):
            run.save_before_failing(self._number, done, self._optimizer)
            raise
        finally:
            self._maker.close()

    def _batches(self, step: int) -> StepBatches:
        accelerator = self._run.accelerator
        images = self._order.step(step)
        return self._maker.make(images[accelerator.process_index :: accelerator.num_processes])

    def _step(self, step: int, batch: StepBatches) -> StepResult:
        run, name = self._run, self._settings.name
        factor = schedule(step, self._steps, self._settings)
        set_learning_rates(self._optimizer, factor)
        result = self._stepper.step(
            batch,
            where=f"stage '{name}', step {step}",
            seed=_step_seed(run.seed, self._number, step),
        )
        if result.split and self._maker.micro_batch_images > 1:
            self._maker.micro_batch_images = (self._maker.micro_batch_images + 1) // 2
            run.reporter.warn(
                f"out of memory: micro-batches now hold {self._maker.micro_batch_images} images; "
                "the step's loss is the same"
            )
        run.summary.losses.append(result.loss)
        run.summary.add_norms(result.norms)
        run.summary.images += self._settings.images_per_step
        run.summary.answer_tokens += result.answer_tokens
        run.summary.steps[name] = step + 1
        run.accelerator.log(
            {"loss": result.loss, "learning_rate_factor": factor}
            | {f"gradient_norm/{part}": norm for part, norm in result.norms.items()},
            step=len(run.summary.losses),
        )
        return result


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
    used = {name: opened[name] for name in part_settings(stage) if opened[name]}
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


def _step_seed(seed: int, stage: int, step: int) -> int:
    return int(hash_text(str(seed), str(stage), str(step))[:12], 16)
