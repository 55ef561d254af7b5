"""The one training loop of all pretraining: images for encoders, text for the language model.

What belongs here: step, clip, non-finite guard, collapse watch, loss curve, checkpoint, resume.
What a loss is belongs to the objectives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.progress import Reporter
from zoo.checkpoint import load_checkpoint, save_checkpoint
from zoo.objective import ObjectiveLoss
from zoo.schedule import Budget, make_optimizer
from zoo.watch import COLLAPSED_RANK, effective_rank


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of the loss curve: means since the point before, watch values of its last step."""

    step: int
    loss: float
    feature_rank: float
    terms: dict[str, float]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the point rounded to what is worth reading."""
        return {
            "step": self.step,
            "loss": round(self.loss, 5),
            "feature_rank": round(self.feature_rank, 2),
            **{name: round(value, 5) for name, value in self.terms.items()},
            "seconds": round(self.seconds, 1),
        }


@dataclass(slots=True)
class Run:
    """What a loop works on.

    Attributes:
        name: shown and named in errors.
        module: everything that is trained or saved.
        step_loss: loss of a step number; draws its data and randomness from `generator`.
        after_step: called with the progress in 0..1 after each optimizer step.
        generator: the only source of randomness.
        identity: JSON that must agree for a checkpoint to be resumed.
    """

    name: str
    module: nn.Module
    step_loss: Callable[[int, torch.Generator], ObjectiveLoss]
    after_step: Callable[[float], None]
    generator: torch.Generator
    identity: dict[str, Any]


def train(
    run: Run,
    budget: Budget,
    *,
    folder: Path,
    reporter: Reporter,
    checkpoint_every: int = 100,
    curve_every: int = 25,
    stop_after: int | None = None,
    on_checkpoint: Callable[[int, list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train to the end of the budget, resuming where `folder` holds a checkpoint.

    Args:
        run: what is trained.
        budget: steps and optimizer.
        folder: where the checkpoint lives.
        reporter: told step, loss and rank.
        checkpoint_every: steps between checkpoints.
        curve_every: steps between points of the loss curve.
        stop_after: stop at this step with a checkpoint, as a kill would leave it.
        on_checkpoint: called with steps done and the curve after each checkpoint.

    Returns:
        The loss curve as JSON.

    Raises:
        TrainingError: a loss that is not finite, or a checkpoint of another run.
    """
    optimizer = make_optimizer(run.module, budget)
    resumed = load_checkpoint(
        folder,
        module=run.module,
        optimizer=optimizer,
        generator=run.generator,
        identity=run.identity,
    )
    progress = resumed or {"identity": run.identity, "steps": 0, "seconds": 0.0, "curve": []}
    last = min(budget.steps, stop_after or budget.steps)
    start, pending = time.monotonic() - progress["seconds"], _Pending()
    with reporter.phase(run.name, total=budget.steps, unit="steps") as phase:
        phase.advance(progress["steps"])
        for step in range(progress["steps"], last):
            loss = _step(run, budget, optimizer, step)
            pending.add(loss.total.item())
            if (step + 1) % curve_every == 0 or step + 1 == last:
                point = pending.point(step + 1, loss, time.monotonic() - start)
                progress["curve"].append(point.as_json())
                _warn_of_collapse(run.name, point, reporter)
            phase.advance(loss=f"{loss.total.item():.3f}")
            if (step + 1) % checkpoint_every == 0 or step + 1 == last:
                progress |= {"steps": step + 1, "seconds": time.monotonic() - start}
                save_checkpoint(
                    folder,
                    module=run.module,
                    optimizer=optimizer,
                    generator=run.generator,
                    progress=progress,
                )
                if on_checkpoint:
                    on_checkpoint(step + 1, progress["curve"])
    curve: list[dict[str, Any]] = progress["curve"]
    return curve


def _step(run: Run, budget: Budget, optimizer: torch.optim.Optimizer, step: int) -> ObjectiveLoss:
    run.module.train()
    for group in optimizer.param_groups:
        group["lr"] = budget.learning_rate_at(step)
    loss = run.step_loss(step, run.generator)
    if not torch.isfinite(loss.total):
        raise TrainingError(
            f"{run.name}: the loss is {loss.total.item()} at step {step + 1}; "
            "lower the learning rate (what was trained until the last checkpoint is kept)"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()  # type: ignore[no-untyped-call]
    trainable = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(trainable, budget.clip_norm)
    optimizer.step()
    run.after_step((step + 1) / budget.steps)
    return loss


def _warn_of_collapse(name: str, point: CurvePoint, reporter: Reporter) -> None:
    if point.feature_rank < COLLAPSED_RANK:
        reporter.warn(
            f"{name}: features use {point.feature_rank:.1f} directions at step {point.step}; "
            "they may be collapsing"
        )


class _Pending:
    """Losses since the last point of the curve."""

    def __init__(self) -> None:
        self._losses: list[float] = []

    def add(self, loss: float) -> None:
        self._losses.append(loss)

    def point(self, step: int, loss: ObjectiveLoss, seconds: float) -> CurvePoint:
        mean = sum(self._losses) / len(self._losses)
        self._losses = []
        return CurvePoint(step, mean, effective_rank(loss.features), loss.terms, seconds)
