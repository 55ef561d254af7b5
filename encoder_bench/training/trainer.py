"""Training: stages of optimizer steps, with checkpoints from which it resumes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from encoder_bench.base.errors import EncoderBenchError, TrainingError
from encoder_bench.base.hashing import hash_json, hash_text
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import AdapterRecipe, TaskRecipe
from encoder_bench.data.mixture import Mixture
from encoder_bench.data.sample import Sample
from encoder_bench.data.sample_table import SampleTable
from encoder_bench.mllm.attention import training_attention
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch
from encoder_bench.mllm.projectors.whitening import WhitenedProjector
from encoder_bench.mllm.trainable import first_names
from encoder_bench.training.batch_encoder import is_out_of_memory
from encoder_bench.training.batches import (
    NO_MIXTURES,
    BatchMaker,
    StepBatches,
    prefetch,
    sample_images,
    stage_order,
    training_images,
)
from encoder_bench.training.checkpoint import (
    Resume,
    TrainingSummary,
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
from encoder_bench.training.feature_cache import FeatureStore
from encoder_bench.training.optimizer import (
    make_optimizer,
    only_parts,
    schedule,
    set_learning_rates,
)

_MAX_SHOWN_SAMPLES = 16
_CHECKPOINT_SECONDS = 600.0
"""After so long a checkpoint is written however few steps were done: where one takes half a minute,
a hundred are the better part of an hour."""


def training_identity(
    adapter: AdapterRecipe,
    tasks: Mapping[str, TaskRecipe],
    samples: Sequence[Sample],
    seed: int,
    mixtures: Mapping[str, Mixture] = NO_MIXTURES,
) -> str:
    """Return the hash of all that determines what is learned, the model's weights excepted."""
    wording = {name: [task.prompt, task.answer] for name, task in tasks.items()}
    settings = hash_json([adapter.scoring(), wording, seed])
    taught = [SampleTable.of(samples).fingerprint]
    taught += [mixtures[stage.mixture].fingerprint() for stage in adapter.stages if stage.mixture]
    return hash_text(settings, *taught)


@dataclass(slots=True)
class Trainer:
    """Trains the parts of `mllm` that `set_trainable` left open.

    Attributes:
        mllm: what trains; where the launcher asks for shards, a sharded copy while it trains.
        folder: of checkpoints. The last one stays until `remove_checkpoints` is called, so that a
            kill between the end of training and the writing of the final weights loses nothing.
        features: the frozen encoder's `(N, D)` patch tokens by image path; images that it lacks
            are encoded in every step.
        mixtures: by the name that a stage gives them.
        trackers: names that accelerate knows (`tensorboard`, `wandb`...).
    """

    mllm: MLLM
    samples: Sequence[Sample]
    adapter: AdapterRecipe
    tasks: Mapping[str, TaskRecipe]
    _: KW_ONLY
    folder: Path
    seed: int
    reporter: Reporter
    device: torch.device
    features: Mapping[Path, Tensor] = field(default_factory=dict)
    mixtures: Mapping[str, Mixture] = field(default_factory=dict)
    trackers: Sequence[str] = ()
    summary: TrainingSummary = field(default_factory=TrainingSummary, init=False)
    accelerator: Accelerator = field(init=False)
    sharded: bool = field(init=False)
    _trained: dict[str, Tensor] = field(init=False)
    _identity: str = field(init=False)

    def train(self) -> TrainingSummary:
        """Do all stages, from the last checkpoint where there is one.

        Images come in the same order as without an interruption; on CPUs the result has the same
        bits.

        Raises:
            TrainingError: nothing to train, no samples, a non-finite loss (names the samples), out
                of memory with one image, or a checkpoint of another recipe.
            EncoderBenchError: an image cannot be read, features not be kept, or a checkpoint not be
                written; what was learned until then is kept.
        """
        whole = self.mllm
        self.accelerator = make_accelerator(self.device, self.adapter, self.folder, self.trackers)
        self.sharded = asks_for_shards(self.accelerator)
        for stage in self.adapter.stages:
            if stage.images_per_step < self.accelerator.num_processes:
                raise TrainingError(
                    f"stage '{stage.name}': images_per_step {stage.images_per_step} is fewer than "
                    f"the {self.accelerator.num_processes} processes"
                )
        if isinstance(whole.projector, WhitenedProjector):
            shown = training_images(self.samples, self.adapter, self.seed, self.mixtures)
            whole.projector.fit(
                whole.encoder,
                sample_images(self.samples, shown),
                self.features,
                device=self.device,
                reporter=self.reporter,
            )
        self.mllm = sharded_copy(whole, self.device) if self.sharded else whole.to(self.device)
        if isinstance(self.features, FeatureStore):
            self.features.use(self.mllm.encoder)
        self._trained = trained_state(self.mllm)  # all that may train, whatever a stage freezes
        self._identity = training_identity(
            self.adapter, self.tasks, self.samples, self.seed, self.mixtures
        )
        resumed = self.resume()
        wanted = self.adapter.training.attention
        attention = training_attention(self.mllm.language, self.device, wanted)
        with attention as self.summary.attention:
            for number in range(resumed.stage if resumed else 0, len(self.adapter.stages)):
                self.train_stage(number, resumed)
                resumed = None
        if self.sharded:
            load_sharded(whole, self.mllm)
        if self.summary.cut_rows or self.summary.skipped_rows:
            self.reporter.warn(
                f"of the rows shown {self.summary.cut_rows} were cut and "
                f"{self.summary.skipped_rows} skipped, because they are longer than the context of "
                f"{whole.language.max_length} tokens (llm.max_length)"
            )
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        self.mllm, self._trained = whole.eval(), {}  # the trained state shares the model's memory
        return self.summary

    def train_stage(self, number: int, resumed: Resume | None) -> None:
        """Do the steps of a stage that are left, with a checkpoint every so often."""
        stage, training = self.adapter.stages[number], self.adapter.training
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        order, steps = stage_order(self.samples, self.adapter, number, self.seed, self.mixtures)
        maker = BatchMaker(
            self.mllm,
            self.tasks,
            micro_batch_images=stage.micro_batch_images or stage.images_per_step,
            shared_prefix=training.shared_prefix,
            row_length=training.row_length,
            features=self.features,
            pin_memory=self.device.type == "cuda",
        )
        done = resumed.step if resumed else 0
        batches = prefetch(
            lambda i: maker.make(order.step(i)[index::processes]), range(done, steps)
        )
        with only_parts(self.mllm, stage) as parameters:
            optimizer = make_optimizer(self.mllm, stage)
            gradients = Gradients(parameters, self.accelerator, sharded=self.sharded)
            if resumed:
                restore_optimizer(optimizer, resumed.path)
            self.mllm.train()
            try:
                with self.reporter.phase(f"training ({stage.name})", steps, "steps") as phase:
                    phase.advance(done)
                    began = saved = time.perf_counter()
                    for step, made, waited in batches:
                        factor = schedule(step, steps, stage)
                        set_learning_rates(optimizer, factor)
                        result = train_step(
                            self.mllm,
                            optimizer,
                            gradients,
                            made,
                            bfloat16=training.precision == "bfloat16",
                            clip_norm=stage.clip_norm,
                            where=f"stage '{stage.name}', step {step}",
                            seed=int(hash_text(str(self.seed), str(number), str(step))[:12], 16),
                        )
                        done = step + 1
                        if result.split:
                            self._halve(maker)
                        self._log(number, done, factor, result)
                        self.summary.seconds += time.perf_counter() - began
                        self.summary.waited_seconds += waited
                        rate = optimizer.param_groups[0]["lr"]
                        loss = "none" if result.loss is None else f"{result.loss:.3f}"
                        phase.advance(loss=loss, rate=f"{rate:.2g}")
                        if self._checkpoint_is_due(done, steps, saved):
                            self.save(number, done, optimizer)
                            saved = time.perf_counter()
                        began = time.perf_counter()
            except EncoderBenchError:
                if not self.sharded:  # the other processes are not here to give their shards
                    self.save(number, done, optimizer)
                raise
            finally:
                maker.close()

    def _checkpoint_is_due(self, done: int, steps: int, saved: float) -> bool:
        # only all processes together can save shards, and each has a clock of its own
        late = not self.sharded and time.perf_counter() - saved > _CHECKPOINT_SECONDS
        return late or done == steps or done % self.adapter.training.checkpoint_every == 0

    def resume(self) -> Resume | None:
        """Load the last checkpoint, if there is one, and return where it stands."""
        self.accelerator.wait_for_everyone()
        found = latest_checkpoint(self.folder, self._identity)
        if found is not None:
            restore_weights(self._trained, found.path)
            self.summary = found.summary
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
                summary=self.summary,
                identity=self._identity,
                keep=self.adapter.training.keep_checkpoints,
            )
        if isinstance(self.features, FeatureStore):
            self.features.flush()

    def _halve(self, maker: BatchMaker) -> None:
        if maker.micro_batch_images > 1:
            maker.micro_batch_images = (maker.micro_batch_images + 1) // 2
            self.reporter.warn(
                f"out of memory: micro-batches now hold {maker.micro_batch_images} images; the "
                "step's loss is the same"
            )

    def _log(self, number: int, done: int, factor: float, result: StepResult) -> None:
        self.summary.steps[self.adapter.stages[number].name] = done
        self.summary.cut_rows += result.cut_rows
        self.summary.skipped_rows += result.skipped_rows
        if result.loss is None:
            return
        self.summary.losses.append(result.loss)
        self.summary.add_norms(result.norms)
        self.summary.images += result.images
        self.summary.answer_tokens += result.answer_tokens
        self.accelerator.log(
            {"loss": result.loss, "learning_rate_factor": factor}
            | {f"gradient_norm/{part}": norm for part, norm in result.norms.items()},
            step=len(self.summary.losses),
        )


class StepResult(NamedTuple):
    """What one step did, over all processes: mean loss per answer token in nats.

    The loss is None where no row of the step fits into the context, so that nothing was changed.
    `norms` are each part's gradient norm before clipping; `split` says whether memory ran out and
    the micro-batches were halved; the other counts are those of `StepBatches`.
    """

    loss: float | None
    answer_tokens: int
    images: int
    cut_rows: int
    skipped_rows: int
    norms: dict[str, float]
    split: bool


def train_step(
    mllm: MLLM,
    optimizer: torch.optim.Optimizer,
    gradients: Gradients,
    batches: StepBatches,
    *,
    bfloat16: bool,
    clip_norm: float | None,
    where: str,
    seed: int,
) -> StepResult:
    """Do one optimizer step on this process's share of the rows.

    The loss is the sum of the answer tokens' cross-entropies over the step divided by their number
    over all micro-batches and processes, so that it is the mean over the global batch, however
    that was cut. `seed` fixes dropout, so that a step is the same whether or not training was
    resumed; `where` (stage and step) opens errors.

    Raises:
        TrainingError: the loss or a gradient is not finite (names the samples; nothing has been
            changed), or one image alone does not fit into memory.
    """
    losses, ran = _forward_backward(
        mllm, optimizer, gradients, batches.micro, bfloat16=bfloat16, where=where, seed=seed
    )
    taught = sum(m.answer_tokens for m in batches.micro)
    sums = torch.tensor([float(losses.sum()), taught, *batches[1:]], dtype=torch.float64)
    loss, *counts = gradients.reduce(sums).tolist()
    tokens, images, cut, skipped = map(int, counts)
    result = StepResult(None, tokens, images, cut, skipped, {}, len(ran) > len(batches.micro))
    if not tokens:
        optimizer.zero_grad(set_to_none=True)
        return result
    gradients.sum_over_processes()
    norms = {part: norm / tokens for part, norm in gradients.norms().items()}
    norm = math.hypot(*norms.values())
    if not (math.isfinite(loss) and math.isfinite(norm)):
        optimizer.zero_grad(set_to_none=True)
        raise _non_finite(where, loss / tokens, norm, ran, losses)
    clip = 1.0 if clip_norm is None else min(1.0, clip_norm / (norm + 1e-6))
    gradients.scale(clip / tokens)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return result._replace(loss=loss / tokens, norms=norms)


def _forward_backward(
    mllm: MLLM,
    optimizer: torch.optim.Optimizer,
    gradients: Gradients,
    micro: Sequence[TrainingBatch],
    *,
    bfloat16: bool,
    where: str,
    seed: int,
) -> tuple[Tensor, Sequence[TrainingBatch]]:
    """Return each micro-batch's summed loss, on the CPU, and the micro-batches as they ran.

    Where memory runs out, the step starts again with halves.
    """
    accelerator, device = gradients.accelerator, _device(mllm)
    idle = 0
    if gradients.sharded:  # all gather each other's shards in every pass, so all do as many passes
        count = torch.tensor([len(micro)], device=device)
        idle = int(accelerator.gather(count).max()) - len(micro)

    def backward(batch: TrainingBatch, weight: float) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss: Tensor = mllm(batch.to(device))
        accelerator.backward(loss * (weight * gradients.loss_factor))
        return loss.detach().float()

    while True:
        torch.manual_seed(seed + accelerator.process_index)
        try:
            losses = [backward(m, 1.0) for m in micro]
            for _ in range(idle):
                backward(micro[-1], 0.0)
            return torch.stack(losses).cpu(), micro
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if gradients.sharded:
                raise TrainingError(
                    f"{where}: out of memory; processes that share shards cannot halve their "
                    "micro-batches one by one: lower micro_batch_images and run it again"
                ) from error
            if all(len(m.dialogues) == 1 for m in micro):
                raise TrainingError(
                    f"{where}: out of memory with one image in a micro-batch; lower "
                    "samples_per_image or --visual-tokens, or set gradient_checkpointing"
                ) from error
        optimizer.zero_grad(set_to_none=True)
        if device.type != "cpu":
            torch.get_device_module(device).empty_cache()
        micro = [half for m in micro for half in m.halves()]


def _device(mllm: MLLM) -> torch.device:
    return next(mllm.projector.parameters()).device


def _non_finite(
    where: str, loss: float, norm: float, micro: Sequence[TrainingBatch], losses: Tensor
) -> TrainingError:
    """Name the samples of the micro-batches whose loss is not finite, else of all."""
    finite = torch.isfinite(losses).tolist()
    bad = [m for m, good in zip(micro, finite, strict=True) if not good] or list(micro)
    names = [name for m in bad for dialogue in m.dialogues for name in dialogue.samples]
    return TrainingError(
        f"{where}: the loss is {loss:.4g} and the gradient norm {norm:.4g}; the batch held "
        f"{first_names(names, _MAX_SHOWN_SAMPLES)}. Lower the learning rate, or look at these "
        "samples"
    )
