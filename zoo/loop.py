"""The one training loop of all pretraining: images for encoders, text for the language model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.progress import Reporter
from zoo.checkpoint import load_checkpoint, save_checkpoint
from zoo.objective import ObjectiveLoss
from zoo.schedule import Budget, make_optimizers

COLLAPSED_RANK = 2.0
"""Below this effective rank the features hold next to nothing; the run warns."""


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
    """Train to the end of the budget and return the loss curve as JSON.

    It resumes where `folder` holds a checkpoint, and stops at `stop_after` with one, as a kill
    would leave it. A point of the curve has means since the point before and the watched values
    of its last step. `on_checkpoint` gets the steps done and the curve.

    Raises:
        TrainingError: a loss that is not finite, or a checkpoint of another run.
    """
    optimizers = make_optimizers(run.module, budget)
    resumed = load_checkpoint(
        folder,
        module=run.module,
        optimizers=optimizers,
        generator=run.generator,
        identity=run.identity,
    )
    progress = resumed or {"identity": run.identity, "steps": 0, "seconds": 0.0, "curve": []}
    last = min(budget.steps, stop_after or budget.steps)
    start = time.monotonic() - progress["seconds"]
    losses: list[float] = []
    with reporter.phase(run.name, total=budget.steps, unit="steps") as phase:
        phase.advance(progress["steps"])
        for step in range(progress["steps"], last):
            loss = _step(run, budget, optimizers, step)
            losses.append(loss.total.item())
            if (step + 1) % curve_every == 0 or step + 1 == last:
                point = _curve_point(step + 1, losses, loss, time.monotonic() - start)
                progress["curve"].append(point)
                losses = []
                if point["feature_rank"] < COLLAPSED_RANK:
                    reporter.warn(
                        f"{run.name}: features use {point['feature_rank']:.1f} directions at step "
                        f"{step + 1}; they may be collapsing"
                    )
            phase.advance(loss=f"{loss.total.item():.3f}")
            if (step + 1) % checkpoint_every == 0 or step + 1 == last:
                progress |= {"steps": step + 1, "seconds": time.monotonic() - start}
                save_checkpoint(
                    folder,
                    module=run.module,
                    optimizers=optimizers,
                    generator=run.generator,
                    progress=progress,
                )
                if on_checkpoint:
                    on_checkpoint(step + 1, progress["curve"])
    curve: list[dict[str, Any]] = progress["curve"]
    return curve


def _curve_point(
    step: int, losses: list[float], last: ObjectiveLoss, seconds: float
) -> dict[str, Any]:
    return {
        "step": step,
        "loss": round(sum(losses) / len(losses), 5),
        "feature_rank": round(effective_rank(last.features), 2),
        **{name: round(value, 5) for name, value in last.terms.items()},
        "seconds": round(seconds, 1),
    }


def _step(
    run: Run, budget: Budget, optimizers: list[torch.optim.Optimizer], step: int
) -> ObjectiveLoss:
    run.module.train()
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["lr"] = group["initial_lr"] * budget.rate_at(step)
    loss = run.step_loss(step, run.generator)
    if not torch.isfinite(loss.total):
        raise TrainingError(
            f"{run.name}: the loss is {loss.total.item()} at step {step + 1}; "
            "lower the learning rate (what was trained until the last checkpoint is kept)"
        )
    run.module.zero_grad(set_to_none=True)
    loss.total.backward()  # type: ignore[no-untyped-call]
    trainable = [p for group in groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(trainable, budget.clip_norm)
    for optimizer in optimizers:
        optimizer.step()
    run.after_step((step + 1) / budget.steps)
    return loss


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """Return exp(entropy) of the normalised singular values of centred `(B, D)` features.

    1 means a single direction, min(B - 1, D) that all are used alike; 0 that all rows are equal.

    Reference: Roy & Vetterli 2007, "The effective rank".

    >>> effective_rank(torch.ones(4, 3))
    0.0
    >>> round(effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 3)
    2.0
    """
    centred = features.float() - features.float().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    total = values.sum()
    if total < 1e-6:
        return 0.0
    share = values / total
    return float((-(share * share.clamp_min(1e-12).log()).sum()).exp())
