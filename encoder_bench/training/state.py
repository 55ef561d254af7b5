"""What a training keeps through all its stages, and how it is saved and taken up again.

What belongs here: the run as a whole. The course of one stage is `stage.py`'s job, files are
`checkpoint.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import AdapterRecipe, TaskRecipe
from encoder_bench.data.sample import Sample
from encoder_bench.mllm.model import MLLM
from encoder_bench.training.checkpoint import (
    Resume,
    latest_checkpoint,
    optimizer_state,
    restore_weights,
    save_checkpoint,
)
from encoder_bench.training.sharding import gathered
from encoder_bench.training.summary import TrainingSummary


@dataclass(slots=True)
class TrainingRun:
    """What stays the same through all stages, and what has been learned of the run so far.

    Attributes:
        mllm: what trains: the model itself, or its sharded copy.
        samples: training samples of all tasks.
        adapter: the recipe.
        tasks: recipes of the tasks that are trained on.
        folder: where checkpoints go.
        seed: of the order and of dropout.
        identity: hash of all that determines what is learned.
        reporter: where progress goes.
        device: of the model.
        features: the frozen encoder's patch tokens by image path.
        accelerator: knows the processes.
        sharded: whether parameters are cut over the processes.
        trained: `trained_state` of the model, whatever a stage freezes.
        summary: what happened so far.
    """

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
    sharded: bool
    trained: Mapping[str, Tensor]
    summary: TrainingSummary = field(default_factory=TrainingSummary)

    def resume(self) -> tuple[Path | None, int, int]:
        """Read the last checkpoint, if there is one; return it, its stage and its steps."""
        self.accelerator.wait_for_everyone()
        found = latest_checkpoint(self.folder, self.identity)
        if found is None:
            return None, 0, 0
        checkpoint, resume = found
        restore_weights(self.trained, checkpoint)
        self.summary = TrainingSummary.from_json(resume.history)
        self.reporter.note(f"training goes on from {checkpoint.name}")
        return checkpoint, resume.stage, resume.step

    def save(self, stage: int, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint, on the main process; all processes give their shards to it."""
        keep = self.accelerator.is_main_process
        trained = gathered(self.trained, keep=keep)
        moments = gathered(optimizer_state(optimizer), keep=keep)
        if keep:
            save_checkpoint(
                self.folder,
                trained,
                moments,
                Resume(stage, step, self.summary.as_json()),
                identity=self.identity,
                keep=self.adapter.training.keep_checkpoints,
            )

    def save_before_failing(self, stage: int, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Keep what was learned before an error; shards cannot be, since other processes go on."""
        if not self.sharded:
            self.save(stage, step, optimizer)
