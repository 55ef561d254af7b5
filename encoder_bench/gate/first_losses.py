"""The first steps of an accepted run's training, done again: the losses must be those of then.

What belongs here: a gate on data order, initialisation, prompts, masks and optimizer that costs
seconds. Rounding grows with every step, so that only the first ones are held to their figures.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from encoder_bench.base.progress import Phase, QuietReporter, Reporter
from encoder_bench.base.record import RunRecord
from encoder_bench.gate.verdicts import RunVerdict, TaskVerdict
from encoder_bench.pipeline.plan import RunPlan

STEPS = 6
TOLERANCE = 0.02
"""Of a loss, relative. Other vector instructions stay within it; a projector in column order moved
the loss by 4 to 15% within six steps, and images in another order move the first one already."""


def check_first_losses(
    name: str, record: RunRecord, plan: RunPlan, reporter: Reporter
) -> RunVerdict:
    """Train the first few steps of a run again and hold each loss against the recorded one.

    Args:
        name: the run's identity in the baseline.
        record: the accepted run.
        plan: today's plan of it.
        reporter: where progress goes.

    Raises:
        EncoderBenchError: as `run`.
    """
    recorded = [float(loss) for loss in (record.training.get("losses") or [])[:STEPS]]
    with reporter.phase("first steps of training", len(recorded), "steps") as phase:
        losses = first_losses(plan, len(recorded)) if recorded else []
        phase.advance(len(losses))
    away = [abs(now - then) / abs(then) for then, now in zip(recorded, losses, strict=True)]
    failures: tuple[str, ...] = ()
    if away and max(away) > TOLERANCE:
        step = next(index for index, share in enumerate(away) if share > TOLERANCE)
        failures = (
            f"the loss of training step {step + 1} was {recorded[step]:.3f} and is "
            f"{losses[step]:.3f} now, more than {TOLERANCE:.0%} away",
        )
    verdict = TaskVerdict("training, first steps again", None, failures)
    notes = (f"the first {len(away)} losses are at most {max(away, default=0.0):.2%} away",)
    return RunVerdict(name, record.run_id, None, (), (verdict,), notes if away else ())


def first_losses(plan: RunPlan, steps: int) -> Sequence[float]:
    """Return the losses of the first steps of a plan's training, to three decimals.

    The training is the run's own, whole schedule and all, and is stopped from outside.

    Raises:
        EncoderBenchError: as `run`.
    """
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.pipeline.build import build_mllm
    from encoder_bench.pipeline.run_data import read_data
    from encoder_bench.training.trainer import train

    device = choose_device(plan.device)
    data = read_data(plan, QuietReporter())
    mllm = build_mllm(plan).to(device)
    listener = _Listener(steps)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError):
        train(
            mllm,
            data.training,
            plan.adapter,
            plan.training_recipes,
            folder=Path(folder),
            seed=plan.seed,
            reporter=listener,
            device=device,
        )
    return listener.losses


class _EnoughError(Exception):
    """Ends a training whose first steps are all that is wanted."""


class _Listener(QuietReporter):
    """A reporter that keeps the losses told to it and stops after so many."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.losses: list[float] = []

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "it") -> Iterator[Phase]:
        yield self

    def advance(self, amount: int = 1, **fields: str) -> None:
        if "loss" in fields:
            self.losses.append(float(fields["loss"]))
            if len(self.losses) >= self._steps:
                raise _EnoughError
