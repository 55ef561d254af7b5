"""The training loop: stages of steps, saved so that a kill at any moment loses little.

What belongs here: `train`. The course of a stage, a step, batches, order, optimizer and
checkpoints have files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from encoder_bench.base.hashing import hash_json, hash_text
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import AdapterRecipe, TaskRecipe
from encoder_bench.data.sample import Sample
from encoder_bench.mllm.attention import training_attention
from encoder_bench.mllm.model import MLLM
from encoder_bench.training.checkpoint import trained_state
from encoder_bench.training.distributed import make_accelerator
from encoder_bench.training.sharding import asks_for_shards, load_sharded, sharded_copy
from encoder_bench.training.stage import Stage, only_parts
from encoder_bench.training.state import TrainingRun
from encoder_bench.training.summary import TrainingSummary
from encoder_bench.training.whiten import fit_whitening

__all__ = ["TrainingSummary", "train"]


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
        mllm: with its parts frozen or open; moved to `device`. Where the launcher asks for shards
            it stays where it is, a sharded copy trains, and it takes up the copy's weights.
        samples: training samples of all tasks.
        adapter: the recipe.
        tasks: recipes of the tasks that are trained on, for their prompts.
        folder: where checkpoints go.
        seed: of the order and of dropout.
        reporter: where progress goes.
        device: where to train.
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
    sharded = asks_for_shards(accelerator)
    fit_whitening(mllm, samples, features, device=device)
    working = sharded_copy(mllm, device) if sharded else mllm.to(device)
    trained = trained_state(working)
    run = TrainingRun(
        mllm=working,
        samples=samples,
        adapter=adapter,
        tasks=tasks,
        folder=folder,
        seed=seed,
        identity=training_identity(adapter, tasks, samples, seed),
        reporter=reporter,
        device=device,
        features=features,
        accelerator=accelerator,
        sharded=sharded,
        trained=trained,
    )
    checkpoint, stage_done, steps_done = run.resume()
    run.summary.processes = accelerator.num_processes
    run.summary.sharded = sharded
    with training_attention(working.language, device, adapter.training.attention) as attention:
        run.summary.attention = attention
        for number, stage in enumerate(adapter.stages[stage_done:], start=stage_done):
            with only_parts(working, stage) as parameters:
                Stage(run, number, stage, parameters).run(checkpoint, steps_done)
            checkpoint, steps_done = None, 0
    if sharded:
        load_sharded(mllm, working)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    mllm.eval()
    return run.summary


def training_identity(
    adapter: AdapterRecipe,
    tasks: Mapping[str, TaskRecipe],
    samples: Sequence[Sample],
    seed: int,
) -> str:
    """Return the hash of all that determines what is learned, the model's weights excepted."""
    recipe = adapter.scoring()
    wording = {name: [task.prompt, task.answer] for name, task in tasks.items()}
    taught = (f"{s.sample_id}\n{s.question}\n{s.target}" for s in samples)
    return hash_text(hash_json([recipe, wording, seed]), *taught)
