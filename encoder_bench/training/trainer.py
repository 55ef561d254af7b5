"""Training: stages of steps, saved so that a kill at any moment loses little."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from encoder_bench.base.errors import DataError, TrainingError
from encoder_bench.base.hashing import hash_json, hash_text
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import AdapterRecipe, StageSettings, TaskRecipe
from encoder_bench.data.sample import Sample
from encoder_bench.mllm.attention import training_attention
from encoder_bench.mllm.model import MLLM
from encoder_bench.training.batches import (
    BatchMaker,
    ImageSamples,
    StageOrder,
    group_by_image,
    prefetch,
)
from encoder_bench.training.checkpoint import (
    Resume,
    latest_checkpoint,
    optimizer_state,
    restore_optimizer,
    restore_weights,
    save_checkpoint,
    trained_state,
)
from encoder_bench.training.distributed import (
    Gradients,
    asks_for_shards,
    gathered,
    load_sharded,
    make_accelerator,
    sharded_copy,
)
from encoder_bench.training.optimizer import (
    make_optimizer,
    only_parts,
    schedule,
    set_learning_rates,
)
from encoder_bench.training.step import Stepper, StepResult
from encoder_bench.training.summary import TrainingSummary
from encoder_bench.training.whiten import fit_whitening


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

    Interrupted, it resumes from the last checkpoint in `folder` with the same images in the same
    order, on CPUs bit for bit. The last checkpoint stays until `remove_checkpoints` is called, so
    that a kill between the end of training and the writing of the final weights loses nothing.

    `features` are the frozen encoder's patch tokens by image path; images that it lacks are encoded
    in every step. `trackers` are names that accelerate knows (`tensorboard`, `wandb`...). Where the
    launcher asks for shards, a sharded copy of `mllm` trains and its weights are loaded at the end.

    Raises:
        TrainingError: nothing to train, no samples, a non-finite loss (names the samples), or a
            checkpoint of another recipe.
        DataError: an image cannot be read; what was learned until then is kept.
        EncoderBenchError: a checkpoint cannot be written.
    """
    accelerator = make_accelerator(device, adapter, folder, trackers)
    sharded = asks_for_shards(accelerator)
    fit_whitening(mllm, samples, features, device=device)
    trainer = Trainer(
        mllm=sharded_copy(mllm, device) if sharded else mllm.to(device),
        samples=samples,
        adapter=adapter,
        tasks=tasks,
        folder=folder,
        seed=seed,
        reporter=reporter,
        device=device,
        features=features,
        accelerator=accelerator,
        sharded=sharded,
    )
    resumed = trainer.resume()
    attention = training_attention(trainer.mllm.language, device, adapter.training.attention)
    with attention as trainer.summary.attention:
        for number in range(resumed.stage if resumed else 0, len(adapter.stages)):
            trainer.train_stage(number, resumed)
            resumed = None
    if sharded:
        load_sharded(mllm, trainer.mllm)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    mllm.eval()
    return trainer.summary


def training_identity(
    adapter: AdapterRecipe, tasks: Mapping[str, TaskRecipe], samples: Sequence[Sample], seed: int
) -> str:
    """Return the hash of all that determines what is learned, the model's weights excepted."""
    wording = {name: [task.prompt, task.answer] for name, task in tasks.items()}
    taught = (f"{s.sample_id}\n{s.question}\n{s.target}" for s in samples)
    return hash_text(hash_json([adapter.scoring(), wording, seed]), *taught)


@dataclass(slots=True, kw_only=True)
class Trainer:
    """What stays the same through all stages, and what was learned so far.

    Attributes:
        mllm: what trains: the model itself, or its sharded copy.
        accelerator: knows the processes.
        sharded: whether parameters are cut over the processes.
        summary: what happened so far.
    """

    mllm: MLLM
    samples: Sequence[Sample]
    adapter: AdapterRecipe
    tasks: Mapping[str, TaskRecipe]
    folder: Path
    seed: int
    reporter: Reporter
    device: torch.device
    features: Mapping[Path, Tensor] | None
    accelerator: Accelerator
    sharded: bool
    summary: TrainingSummary = field(default_factory=TrainingSummary)
    _identity: str = field(init=False)
    _trained: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Note what is saved: all that may train, whatever a stage freezes."""
        self._identity = training_identity(self.adapter, self.tasks, self.samples, self.seed)
        self._trained = trained_state(self.mllm)

    def train_stage(self, number: int, resumed: Resume | None) -> None:
        """Do the steps of a stage that are left, with a checkpoint every so often.

        Raises:
            DataError: an image cannot be read.
            TrainingError: nothing to train in it, a loss that is not finite, or one image that
                does not fit into memory.
        """
        stage, training = self.adapter.stages[number], self.adapter.training
        order, steps = self._order(number, stage)
        maker = self._batch_maker(stage)
        done = resumed.step if resumed else 0
        batches = prefetch(lambda i: maker.make(self._share(order.step(i))), range(done, steps))
        with only_parts(self.mllm, stage) as parameters:
            optimizer = make_optimizer(self.mllm, stage)
            if resumed:
                restore_optimizer(optimizer, resumed.path)
            stepper = Stepper(
                self.mllm,
                optimizer,
                Gradients(parameters, self.accelerator, sharded=self.sharded),
                bfloat16=training.precision == "bfloat16",
                clip_norm=stage.clip_norm,
            )
            self.mllm.train()
            try:
                with self.reporter.phase(f"training ({stage.name})", steps, "steps") as phase:
                    phase.advance(done)
                    began = time.perf_counter()
                    for step, micro, waited in batches:
                        factor = schedule(step, steps, stage)
                        set_learning_rates(optimizer, factor)
                        result = stepper.train_step(
                            micro,
                            where=f"stage '{stage.name}', step {step}",
                            seed=int(hash_text(str(self.seed), str(number), str(step))[:12], 16),
                        )
                        done = step + 1
                        if result.split:
                            self._halve(maker)
                        self._record(stage, done, factor, result)
                        self.summary.seconds += time.perf_counter() - began
                        self.summary.waited_seconds += waited
                        rate = optimizer.param_groups[0]["lr"]
                        phase.advance(loss=f"{result.loss:.3f}", rate=f"{rate:.2g}")
                        if done % training.checkpoint_every == 0 or done == steps:
                            self.save(number, done, optimizer)
                        began = time.perf_counter()
            except (DataError, TrainingError):
                if not self.sharded:  # the other processes are not here to give their shards
                    self.save(number, done, optimizer)
                raise
            finally:
                maker.close()

    def resume(self) -> Resume | None:
        """Load the last checkpoint, if there is one, and return where it stands."""
        self.accelerator.wait_for_everyone()
        found = latest_checkpoint(self.folder, self._identity)
        if found is not None:
            restore_weights(self._trained, found.path)
            self.summary = TrainingSummary.from_json(found.history)
            self.reporter.note(f"training resumes from {found.path.name}")
        self.summary.processes = self.accelerator.num_processes
        self.summary.sharded = self.sharded
        return found

    def save(self, stage: int, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint, on the main process; all processes give their shards to it."""
        keep = self.accelerator.is_main_process
        trained = gathered(self._trained, keep=keep)
        moments = gathered(optimizer_state(optimizer), keep=keep)
        if keep:
            save_checkpoint(
                self.folder,
                trained,
                moments,
                stage=stage,
                step=step,
                history=self.summary.as_json(),
                identity=self._identity,
                keep=self.adapter.training.keep_checkpoints,
            )

    def _order(self, number: int, stage: StageSettings) -> tuple[StageOrder, int]:
        """Return the order of a stage's images, and its number of steps."""
        groups = group_by_image(self.samples, stage.tasks)
        if not groups:
            raise TrainingError(f"stage '{stage.name}': no samples of {', '.join(stage.tasks)}")
        processes = self.accelerator.num_processes
        if stage.images_per_step < processes:
            raise TrainingError(
                f"stage '{stage.name}': images_per_step {stage.images_per_step} is fewer than the "
                f"{processes} processes"
            )
        order = StageOrder(
            groups,
            stage=f"{number}/{stage.name}",
            seed=self.seed,
            images_per_step=stage.images_per_step,
            samples_per_image=stage.samples_per_image,
        )
        epochs = stage.epochs or 1.0
        return order, stage.steps or math.ceil(epochs * len(groups) / stage.images_per_step)

    def _batch_maker(self, stage: StageSettings) -> BatchMaker:
        return BatchMaker(
            self.mllm,
            self.tasks,
            micro_batch_images=stage.micro_batch_images or stage.images_per_step,
            shared_prefix=self.adapter.training.shared_prefix,
            row_length=self.adapter.training.row_length,
            features=self.features,
            pin_memory=self.device.type == "cuda",
        )

    def _share(self, images: Sequence[ImageSamples]) -> Sequence[ImageSamples]:
        return images[self.accelerator.process_index :: self.accelerator.num_processes]

    def _halve(self, maker: BatchMaker) -> None:
        if maker.micro_batch_images > 1:
            maker.micro_batch_images = (maker.micro_batch_images + 1) // 2
            self.reporter.warn(
                f"out of memory: micro-batches now hold {maker.micro_batch_images} images; the "
                "step's loss is the same"
            )

    def _record(self, stage: StageSettings, done: int, factor: float, result: StepResult) -> None:
        self.summary.losses.append(result.loss)
        self.summary.add_norms(result.norms)
        self.summary.images += stage.images_per_step
        self.summary.answer_tokens += result.answer_tokens
        self.summary.steps[stage.name] = done
        self.accelerator.log(
            {"loss": result.loss, "learning_rate_factor": factor}
            | {f"gradient_norm/{part}": norm for part, norm in result.norms.items()},
            step=len(self.summary.losses),
        )
