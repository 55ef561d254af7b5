"""One run on two processes, as a launcher starts them: one record, the curve of one process."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.hardware import Processes
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import load_adapter
from encoder_bench.base.record import RunRecord, read_records, write_record
from encoder_bench.pipeline.plan import make_plan
from encoder_bench.pipeline.run import run
from encoder_bench.training import distributed as processes
from tests.in_process import free_port, on_two_processes

_ROOT = Path(__file__).resolve().parents[1]
_DATA = "scenes:5:24:2:6"
_FLAGS = ["--data", _DATA, "--steps", "3", "--device", "cpu", "--tasks", "vqa", "--quiet"]
_FLAGS += ["--set", "training.precision=float32"]
"""Processes add up in another order, which the default's bfloat16 and learning rates magnify."""


def launch(results: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run on two processes; on a machine without GPUs `--multi_gpu` starts CPU processes."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", free_port()]
    program = ["-m", "encoder_bench", "run", "--results", str(results), *_FLAGS, *flags]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(_ROOT))
    return subprocess.run(
        [sys.executable, *launcher, *program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def fork(results: Path, log: Path, **environment: str) -> tuple[tuple[int, int], str]:
    """Run on two processes without a launcher; return both exit statuses and what they print."""
    command = ["run", "--results", str(results), *_FLAGS]
    statuses = on_two_processes("encoder_bench", *command, log=log, **environment)
    return statuses, log.read_text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    results = tmp_path_factory.mktemp("alone")
    plan = make_plan(
        data=_DATA,
        steps=3,
        device="cpu",
        tasks=["vqa"],
        results=results,
        settings={"training.precision": "float32"},
    )
    return run(plan, QuietReporter()).record


def test_two_processes_write_one_record_with_the_same_curve(
    alone: RunRecord, tmp_path: Path
) -> None:
    flags = [] if _tensorboard_is_missing() else ["--trackers", "tensorboard"]
    done = launch(tmp_path, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    (record,) = read_records(tmp_path)
    assert record.training["processes"] == 2
    assert record.run_id == alone.run_id
    assert record.training["losses"] == pytest.approx(alone.training["losses"], rel=1e-3)
    assert record.training["answer_tokens"] == alone.training["answer_tokens"]
    given = ["encoder-bench", "run", "--results", str(tmp_path), *_FLAGS, *flags, "--joint-tune"]
    following = [line for line in done.stdout.splitlines() if line.startswith("next ")]
    assert following == [f"next         {shlex.join(given)}"], "only the main process prints"
    if flags:
        folder = tmp_path / "checkpoints" / record.run_id / "trackers"
        assert list(folder.rglob("events.out.tfevents.*"))


def test_shards_write_the_record_of_one_process(alone: RunRecord, tmp_path: Path) -> None:
    shards = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    statuses, printed = fork(tmp_path, tmp_path / "log.txt", **shards)
    assert statuses == (0, 0), printed
    (record,) = read_records(tmp_path)
    assert record.training["sharded"]
    assert record.run_id == alone.run_id
    assert record.training["losses"] == pytest.approx(alone.training["losses"], rel=1e-3)
    assert record.proof.reload_max_difference == 0.0
    frozen, tuned = record.proof.parts["encoder"], record.proof.parts["llm"]
    assert frozen.sha256_after == frozen.sha256_before
    assert tuned.relative_change == pytest.approx(
        alone.proof.parts["llm"].relative_change, rel=1e-2
    )


def test_parameters_offloaded_by_the_launcher_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    monkeypatch.setattr(processes, "asks_for_shards", lambda _: True)
    with pytest.raises(TrainingError, match="fsdp_offload_params"):
        processes.make_accelerator(torch.device("cpu"), load_adapter("quick"), tmp_path, [])


def test_a_second_run_of_a_process_has_its_own_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook that trained on a GPU goes on with `device="cpu"`; accelerate keeps its state."""
    cpu, recipe = torch.device("cpu"), load_adapter("quick")
    processes.make_accelerator(cpu, recipe, tmp_path, [])
    for state in (AcceleratorState, PartialState):
        monkeypatch.setitem(state._shared_state, "device", torch.device("cuda"))
    assert processes.make_accelerator(cpu, recipe, tmp_path, []).device == cpu


def test_a_finished_run_is_found_by_all_processes(alone: RunRecord, tmp_path: Path) -> None:
    write_record(tmp_path, alone)
    statuses, printed = fork(tmp_path, tmp_path / "log.txt")
    assert statuses == (0, 0), printed
    assert printed.count("--force runs it again") == 1


def test_an_error_of_the_main_process_ends_the_others(tmp_path: Path) -> None:
    results = tmp_path / "file"
    results.write_text("not a folder")
    statuses, printed = fork(results, tmp_path / "log.txt")
    assert 0 not in statuses
    assert f"error: --results {results}" in printed


def test_one_process_waits_for_nobody() -> None:
    assert Processes().is_main
    assert Processes().broadcast("value") == "value"


def _tensorboard_is_missing() -> bool:
    return importlib.util.find_spec("tensorboard") is None
