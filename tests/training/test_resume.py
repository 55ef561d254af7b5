"""Checkpoints: killed and resumed is the same as never killed, on one process or two."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from encoder_bench.base.errors import EncoderBenchError, TrainingError
from encoder_bench.training import trainer
from encoder_bench.training.checkpoint import load_mllm_weights, remove_checkpoints, save_mllm
from tests.in_process import ForkedPython, free_port, on_two_processes
from tests.training import world

_ROOT = str(Path(__file__).resolve().parents[2])


def start(folder: Path, *options: str) -> ForkedPython:
    command = [sys.executable, "-m", world.__name__, str(folder), *options]
    with (folder / "log.txt").open("ab") as log:
        return ForkedPython(command, stdout=log, stderr=subprocess.STDOUT)


def in_copies(folder: Path) -> None:
    """Train on two processes as torchrun starts them."""
    log = folder / "log.txt"
    assert on_two_processes(world.__name__, str(folder), log=log) == (0, 0), log.read_text()


def in_shards(folder: Path) -> None:
    """Train on two processes that accelerate's own launcher starts, in shards."""
    launcher = ["-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"]
    launcher += ["--num_processes", "2", "--main_process_port", free_port()]
    done = subprocess.run(
        [sys.executable, *launcher, world.__file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _ROOT},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def kill_after_a_checkpoint(process: ForkedPython, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list((folder / "run").glob("checkpoint-1-*[1-2]")):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()


def go_back_to(folder: Path, step: int) -> None:
    """Leave a finished training as if it had been killed after so many of its six steps."""
    for later in sorted((folder / "run").glob("checkpoint-*"))[step:]:
        shutil.rmtree(later)
    (folder / "summary.json").unlink(missing_ok=True)
    (folder / "end.safetensors").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing disturbed, on one process, without dropout."""
    folder = tmp_path_factory.mktemp("one")
    world.draw(folder / "images")
    world.whole_training(folder, dropout=0.0)
    return folder


def assert_the_same(folder: Path, one: Path, *, processes: int) -> None:
    """The curve and the weights of one process, up to the order of floating-point sums.

    By each tensor's norm: Adam makes a whole step of a gradient that is nearly 0, whose sign may
    be rounding: one of 36,864 weights was seen 3e-4 off. Key biases have no gradient but that.
    """
    assert summary(folder)["processes"] == processes
    assert curve(folder) == pytest.approx(curve(one), rel=1e-4)
    expected, got = load_file(one / "end.safetensors"), load_file(folder / "end.safetensors")
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert (got[name] - tensor).norm() <= 2e-3 * tensor.norm() + 1e-5, name


def test_killed_and_resumed_ends_with_identical_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        world.draw(folder / "images")
    kill_after_a_checkpoint(start(killed, "--dropout"), killed)
    assert not (killed / "end.safetensors").exists()
    for folder in (whole, killed):
        world.whole_training(folder, dropout=0.1)
    expected, got = load_file(whole / "end.safetensors"), load_file(killed / "end.safetensors")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert curve(whole) == curve(killed)


@pytest.mark.slow
def test_killed_again_and_again_at_any_moment_ends_with_identical_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        world.draw(folder / "images")
    world.whole_training(whole, dropout=0.1)
    moment = random.Random(7)
    for _ in range(6):
        process = start(killed, "--dropout")
        while not (killed / "run").is_dir() and process.poll() is None:
            time.sleep(0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moment.uniform(0.0, 2.0))
        process.kill()
        process.wait()
    assert start(killed, "--dropout").wait() == 0, (killed / "log.txt").read_text()
    expected, got = load_file(whole / "end.safetensors"), load_file(killed / "end.safetensors")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert curve(whole) == curve(killed)


def test_half_a_checkpoint_is_skipped(one: Path, tmp_path: Path) -> None:
    """What a kill in the middle of writing leaves: a folder beside its place, not renamed yet."""
    folder = tmp_path / "torn"
    shutil.copytree(one, folder)
    go_back_to(folder, 2)
    torn = folder / "run" / ".checkpoint-0-00000003.abc"
    shutil.copytree(folder / "run" / "checkpoint-0-00000002", torn)
    (torn / "trained.safetensors").write_bytes(b"half")
    world.whole_training(folder, dropout=0.0)
    assert (folder / "end.safetensors").read_bytes() == (one / "end.safetensors").read_bytes()
    assert not torn.exists()


@pytest.mark.parametrize("shards", [False, True], ids=["copies", "shards"])
def test_two_processes_go_on_from_one_and_one_from_two(
    one: Path, tmp_path: Path, shards: bool
) -> None:
    folder = tmp_path / "two"
    shutil.copytree(one, folder)
    go_back_to(folder, 1)
    (in_shards if shards else in_copies)(folder)
    assert summary(folder)["sharded"] == shards
    assert_the_same(folder, one, processes=2)
    assert curve(folder) != curve(one), "the rest did not run on two processes"
    assert curve(folder)[:1] == curve(one)[:1]
    go_back_to(folder, 4)
    world.whole_training(folder, dropout=0.0)
    assert_the_same(folder, one, processes=1)


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def curve(folder: Path) -> list[float]:
    losses: list[float] = summary(folder)["losses"]
    return losses


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = world.model()
    losses = world.run(first, tmp_path).losses
    again = world.model()
    assert world.run(again, tmp_path).losses == losses
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    remove_checkpoints(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*checkpoint*"))


def test_only_the_last_k_checkpoints_stay(tmp_path: Path) -> None:
    adapter = world.recipe(training={"checkpoint_every": 1, "keep_checkpoints": 2})
    world.run(world.model(), tmp_path, adapter)
    names = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert names == ["checkpoint-0-00000003", "checkpoint-0-00000004"]


def test_a_slow_step_does_not_keep_checkpoints_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rare = world.recipe(training={"checkpoint_every": 100, "keep_checkpoints": 9})
    world.run(world.model(), tmp_path / "quick", rare)
    monkeypatch.setattr(trainer, "_CHECKPOINT_SECONDS", 0.0)
    world.run(world.model(), tmp_path / "slow", rare)
    written = {
        folder: sorted(path.name[-1] for path in (tmp_path / folder / "run").glob("checkpoint-*"))
        for folder in ("quick", "slow")
    }
    assert written == {"quick": ["4"], "slow": ["1", "2", "3", "4"]}


def test_another_recipes_checkpoint_is_refused(tmp_path: Path) -> None:
    world.run(world.model(), tmp_path)
    other = world.recipe(stage={"warmup_fraction": 0.5})
    with pytest.raises(TrainingError, match="checkpoint of another recipe or other data"):
        world.run(world.model(), tmp_path, other)


def test_how_often_checkpoints_are_written_is_no_other_recipe(tmp_path: Path) -> None:
    losses = world.run(world.model(), tmp_path).losses
    rarer = world.recipe(training={"checkpoint_every": 7})
    assert world.run(world.model(), tmp_path, rarer).losses == losses


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_one_clear_line(tmp_path: Path, name: str) -> None:
    world.run(world.model(), tmp_path)
    path = next((tmp_path / "run").glob("checkpoint-*")) / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TrainingError, match=str(path.parent)):
        world.run(world.model(), tmp_path)


def test_saved_weights_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    trained = world.model(joint=True, llm="lora")
    world.run(trained, tmp_path)
    save_mllm(trained, tmp_path / "final")
    fresh = world.model(joint=True, llm="lora")
    load_mllm_weights(fresh, tmp_path / "final")
    expected = dict(trained.named_parameters())
    assert all(torch.equal(expected[name], p) for name, p in fresh.named_parameters())
    assert not list((tmp_path / "final").glob("*.bin"))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_mllm(world.model(), tmp_path / "final")
    with pytest.raises(TrainingError, match="other trained parameters"):
        load_mllm_weights(world.model(joint=True), tmp_path / "final")


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EncoderBenchError, match="cannot write"):
        save_mllm(world.model(), tmp_path / "file" / "final")
