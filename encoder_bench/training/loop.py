"""The training loop: stages of steps, saved so that a kill at any moment loses little.

What belongs here: `train`, the course of a stage, and what is kept of it. One step is `step.py`'s
job; batches, order, optimizer and checkpoints have files of their own.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from encoder_bench.data.sample import Sample
from encoder_bench.errors import DataError, TrainingError
from encoder_bench.hashing import hash_json, hash_text
from encoder_bench.mllm.model import MLLM
from encoder_bench.progress import Reporter
from encoder_bench.recipes import AdapterRecipe, StageSettings, TaskRecipe
from encoder_bench.training.batches import BatchMaker, Prefetcher, StepBatches
from encoder_bench.training.checkpoint import (
    Resume,
    latest_checkpoint,
    read_average,
    restore_optimizer,
    restore_weights,
    save_checkpoint,
    trained_state,
)
from encoder_bench.training.ema import MovingAverage
from encoder_bench.training.optimizer import (
    make_optimizer,
    part_settings,
    schedule,
    set_learning_rates,
)
from encoder_bench.training.order import StageOrder, group_by_image
from encoder_bench.training.processes import make_accelerator
from encoder_bench.training.step import Stepper, StepResult
from encoder_bench.training.summary import TrainingSummary

__all__ = ["TrainingSummary", "train"]

_NOT_LEARNING: dict[str, Any] = {
    "description": True,
    "evaluation_batch_images": True,
    "training": {"checkpoint_every", "keep_checkpoints", "feature_cache"},
}


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
    trackers: Sequence[str] = (),
) -> TrainingSummary:
    """Train the parts that `set_trainable` left open, stage by stage.

    A step's loss is the sum of its answer tokens' cross-entropies divided by their number over
    the whole step, however it is cut into micro-batches and processes. Killed, it goes on from
    the last checkpoint in `folder` with the same images in the same order, on CPUs bit for bit.
    The last checkpoint stays until `remove_checkpoints` is called, so that a kill between the
    end of training and the writing of the final weights loses nothing either.

    Args:
        mllm: on `device`, with its parts frozen or open.
        samples: training samples of all tasks.
        adapter: the recipe.
        tasks: recipes of the tasks that are trained on, for their prompts.
        folder: where checkpoints go.
        seed: of the order and of dropout.
        reporter: where progress goes.
        device: of the model.
        features: the frozen encoder's patch tokens by image path; images that it lacks are
            encoded in every step.
        trackers: names of experiment trackers that accelerate knows (`tensorboard`, `wandb`...).

    Raises:
        TrainingError: nothing to train, no samples, a non-finite loss (names the samples), or a
            checkpoint of another recipe.
        DataError: an image cannot be read; what was learned until then is kept.
        EncoderBenchError: a checkpoint cannot be written.
    """
    accelerator = make_accelerator(device, adapter, folder, trackers)
    trained = trained_state(mllm)
    decay = adapter.training.ema_decay
    run = _Run(
        mllm=mllm,
        samples=samples,
        adapter=adapter,
        tasks=tasks,
        folder=folder,
        seed=seed,
        identity=_identity(adapter, tasks, samples, seed),
        reporter=reporter,
        device=device,
        features=features,
        accelerator=accelerator,
        trained=trained,
        average=None if decay is None else MovingAverage(trained, decay),
    )
    checkpoint, stage_done, steps_done = run.resume()
    run.summary.processes = accelerator.num_processes
    for number, stage in enumerate(adapter.stages[stage_done:], start=stage_done):
        with only_parts(mllm, stage) as parameters:
            _Stage(run, number, stage, parameters).run(checkpoint, steps_done)
        checkpoint, steps_done = None, 0
    if run.average is not None:
        run.average.apply()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    mllm.eval()
    return run.summary


@dataclass(slots=True)
class _Run:
    """What stays the same through all stages, and what has been learned of the run so far."""

    mllm: MLLM
    samples: Sequence[Sample]
    adapter: AdapterRecipe
    tasks: Mapping[str, TaskRecipe]
    folder: Path
    seed: int
    identity: str
    reporter: Reporter
    device: torch.device
    features: Mapping[Path, Tensor] | None
    accelerator: Accelerator
    trained: Mapping[str, Tensor]
    average: MovingAverage | None
    summary: TrainingSummary = field(default_factory=TrainingSummary)

    def resume(self) -> tuple[Path | None, int, int]:
        """Read the last checkpoint, if there is one; return it, its stage and its steps."""
        self.accelerator.wait_for_everyone()
        found = latest_checkpoint(self.folder, self.identity)
        if found is None:
            return None, 0, 0
        checkpoint, resume = found
        restore_weights(self.trained, checkpoint)
        if self.average is not None:
            self.average.restore(read_average(checkpoint))
        self.summary = TrainingSummary.from_json(resume.history)
        self.reporter.note(f"training goes on from {checkpoint.name}")
        return checkpoint, resume.stage, resume.step

    def save(self, stage: int, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint, on the main process."""
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.folder,
                self.trained,
                optimizer,
                Resume(stage, step, self.summary.as_json()),
                identity=self.identity,
                keep=self.adapter.training.keep_checkpoints,
                average=None if self.average is None else self.average.state,
            )


class _Stage:
    """One stage: its images, its optimizer, its steps."""

    def __init__(
        self,
        run: _Run,
        number: int,
        stage: StageSettings,
        parameters: Mapping[str, list[nn.Parameter]],
    ) -> None:
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
        )

    def run(self, checkpoint: Path | None, done: int) -> None:
        """Do the steps after the first `done`, with a checkpoint every so often."""
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
            run.save(self._number, done, self._optimizer)
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
        if run.average is not None:
            run.average.update()
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


def _identity(
    adapter: AdapterRecipe,
    tasks: Mapping[str, TaskRecipe],
    samples: Sequence[Sample],
    seed: int,
) -> str:
    """Return the hash of all that determines what is learned, the model's weights excepted."""
    recipe = adapter.model_dump(mode="json", exclude=_NOT_LEARNING)
    wording = {name: [task.prompt, task.answer] for name, task in tasks.items()}
    taught = (f"{s.sample_id}\n{s.question}\n{s.target}" for s in samples)
    return hash_text(hash_json([recipe, wording, seed]), *taught)


def _step_seed(seed: int, stage: int, step: int) -> int:
    return int(hash_text(str(seed), str(stage), str(step))[:12], 16)
