"""The training loop: exact resume, the finite guard, the collapse watch."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.progress import QuietReporter
from zoo.loop import Run, train
from zoo.objective import ObjectiveLoss
from zoo.schedule import Budget

BUDGET = Budget(steps=6, images_per_step=4, learning_rate=0.05)


def make_run(*, poison_at: int | None = None, constant: bool = False) -> Run:
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict(layer=nn.Linear(3, 3), head=nn.Linear(3, 3)))

    def loss(step: int, generator: torch.Generator) -> ObjectiveLoss:
        x = torch.randn(8, 3, generator=generator)
        y = module(x)
        total = (y - x.roll(1, dims=1)).square().mean()
        if step == poison_at:
            total = total * float("nan")
        return ObjectiveLoss(total, torch.ones(8, 3) if constant else y.detach())

    return Run("line", module, loss, lambda _: None, torch.Generator().manual_seed(1), {"run": 1})


def test_a_stopped_run_ends_as_an_unstopped_one(tmp_path: Path) -> None:
    whole, halved = make_run(), make_run()
    curve = train(whole, BUDGET, folder=tmp_path / "a", reporter=QuietReporter(), curve_every=2)
    train(
        halved,
        BUDGET,
        folder=tmp_path / "b",
        reporter=QuietReporter(),
        curve_every=2,
        stop_after=4,
    )
    fresh = make_run()
    resumed = train(fresh, BUDGET, folder=tmp_path / "b", reporter=QuietReporter(), curve_every=2)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, fresh.module.state_dict()[name])
    assert [(p["step"], p["loss"]) for p in curve] == [(p["step"], p["loss"]) for p in resumed]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train(make_run(), BUDGET, folder=tmp_path, reporter=QuietReporter(), stop_after=2)
    other = make_run()
    other.identity = {"run": 2}
    with pytest.raises(TrainingError, match="other settings"):
        train(other, BUDGET, folder=tmp_path, reporter=QuietReporter())


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(make_run(), BUDGET, folder=tmp_path, reporter=QuietReporter(), stop_after=2)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: damaged"):
        train(make_run(), BUDGET, folder=tmp_path, reporter=QuietReporter())


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    run = make_run(poison_at=3)
    with pytest.raises(TrainingError, match="step 4"):
        train(run, BUDGET, folder=tmp_path, reporter=QuietReporter())
    assert all(torch.isfinite(p).all() for p in run.module.parameters())


def test_collapse_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(make_run(constant=True), BUDGET, folder=tmp_path, reporter=QuietReporter())
    assert "may be collapsing" in capsys.readouterr().err
