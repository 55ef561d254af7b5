"""Runs on an emulated accelerator, which refuses what Apple's MPS refuses: as on the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from encoder_bench.base.record import RunRecord, read_records
from encoder_bench.mllm.projectors.projector import average_by_products
from tests.in_process import ForkedPython

_RUN = ["run", "--quiet", "--data", "scenes:5:24:2:6", "--steps", "2", "--limit", "4"]
_RUN += ["--set", "training.precision=float32"]


def start(module: str, results: Path, *flags: str, **environment: str) -> ForkedPython:
    command = [sys.executable, "-m", module, *_RUN, "--results", str(results), *flags]
    results.mkdir()
    with (results / "log.txt").open("ab") as log:
        return ForkedPython(command, env={**os.environ, **environment}, stdout=log)


def record_of(process: ForkedPython, results: Path) -> RunRecord:
    assert process.wait() == 0, (results / "log.txt").read_text()[-3000:]
    (record,) = read_records(results)
    return record


@pytest.mark.parametrize(
    "flags",
    [
        ["--tasks", "vqa,oc"],
        ["--tasks", "vqa", "--joint-tune", "--llm-train", "lora", "--encoder", "tiny-clip"],
        ["--tasks", "mci", "--projector", "c-abstractor", "--visual-tokens", "9"],
    ],
    ids=["frozen", "joint", "unequal-windows"],
)
def test_a_run_is_that_of_the_cpu(flags: list[str], tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    emulated = start("tests.emulated_accelerator", there, *flags, "--device", "emulated")
    on_cpu = record_of(start("encoder_bench", here, *flags, "--device", "cpu"), here)
    found = record_of(emulated, there)
    assert found.hardware["device"] == "emulated"
    assert found.training["losses"] == pytest.approx(on_cpu.training["losses"], rel=1e-4)
    for name, task in on_cpu.tasks.items():
        assert found.tasks[name].metrics == task.metrics
    assert found.proof.device_difference is not None
    assert found.proof.device_difference < 1e-4
    assert on_cpu.proof.device_difference is None


def test_a_device_that_computes_otherwise_is_refused(tmp_path: Path) -> None:
    results = tmp_path / "results"
    flags = ["--tasks", "vqa", "--device", "emulated"]
    process = start("tests.emulated_accelerator", results, *flags, EMULATED_FAULT="silu")
    assert process.wait() == 1
    printed = (results / "log.txt").read_text()
    assert "error: --device emulated" in printed
    assert "use --device cpu" in printed
    assert not read_records(results)


@pytest.mark.parametrize("sizes", [(7, 7), (14, 16), (5, 3), (4, 9)])
@pytest.mark.parametrize("target", [(4, 4), (6, 5), (9, 2), (16, 16)])
def test_averages_by_products_are_the_librarys(
    sizes: tuple[int, int], target: tuple[int, int]
) -> None:
    maps = torch.randn(2, 3, *sizes, generator=torch.Generator().manual_seed(0))
    expected = F.adaptive_avg_pool2d(maps, target)
    torch.testing.assert_close(average_by_products(maps, target), expected)
