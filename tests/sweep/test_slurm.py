"""A sweep on a real SLURM of one node; one cell is preempted, queued again, and goes on.

tests/sweep/slurm/start_one_node.sh /tmp/one-node     (as root; installs slurm-wlm where missing)
SLURM_CONF=/tmp/one-node/slurm.conf pytest -m slurm
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from encoder_bench.base.recipes import recipe_folder
from encoder_bench.sweep.cells import make_cells
from encoder_bench.sweep.status import CellStatus, read_all

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not shutil.which("sbatch") or "SLURM_CONF" not in os.environ,
        reason="no SLURM with partitions `low` and `high` here: see the module's docstring",
    ),
]


def states(results: Path) -> list[CellStatus]:
    return [status for *_, status in read_all(results)]


def wait_for(condition: object, seconds: float) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(1)


def test_a_sweep_finishes_though_a_cell_is_preempted(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cores = str(os.cpu_count())
    recipe = (recipe_folder("adapters") / "quick.toml").read_text()
    for before, after in (
        ("images_per_step = 8", "images_per_step = 4"),
        ("samples_per_image = 4", "samples_per_image = 2"),
    ):
        assert before in recipe
        recipe = recipe.replace(before, after)
    (tmp_path / "small.toml").write_text(recipe)
    sweep = [
        *(sys.executable, "-m", "encoder_bench", "sweep", "--encoders", "tiny-mae"),
        *("--modes", "frozen", "--seeds", "0,1", "--steps", "400", "--data", "scenes:5:64:2:12"),
        *("--adapter", str(tmp_path / "small.toml"), "--tasks", "oc"),
        *("--set", "training.checkpoint_every=5", "--results", str(tmp_path)),
        *("--launcher", "slurm", "--partition", "low", "--gpus", "0", "--cpus", cores),
    ]
    process = subprocess.Popen(sweep, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    request.addfinalizer(process.kill)
    wait_for(lambda: list((tmp_path / "checkpoints").glob("*/checkpoint-*")), 240)
    urgent = ["sbatch", "--partition", "high", "--cpus-per-task", cores, "--wrap", "sleep 2"]
    subprocess.run([*urgent, "--output", "/dev/null"], check=True)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "2 of 2 cells done" in output
    assert sorted(status.attempts for status in states(tmp_path)) == [1, 2]
    assert {status.state for status in states(tmp_path)} == {"done"}


def test_a_sweep_that_was_killed_waits_for_its_queued_cells(tmp_path: Path) -> None:
    sweep = [
        *(sys.executable, "-m", "encoder_bench", "sweep", "--encoders", "tiny-mae"),
        *("--modes", "frozen", "--steps", "2", "--data", "scenes:5:64:2:12", "--tasks", "oc"),
        *("--results", str(tmp_path)),
        *("--launcher", "slurm", "--partition", "low", "--gpus", "0", "--cpus", "1"),
    ]
    subprocess.run([*sweep, "--no-wait", "--sbatch", "begin=now+8"], check=True)
    (status,) = states(tmp_path)
    assert status.state == "queued"
    again = subprocess.run(sweep, capture_output=True, text=True, check=True)
    assert "1 of 1 cells done" in again.stdout
    (status,) = states(tmp_path)
    assert (status.state, status.attempts) == ("done", 1)


def test_what_sbatch_refuses_is_passed_on(tmp_path: Path) -> None:
    from encoder_bench.base.errors import EncoderBenchError
    from encoder_bench.sweep.cells import write_cell
    from encoder_bench.sweep.slurm import SlurmOptions, run_slurm

    (cell,) = make_cells(["tiny-mae"], ["frozen"], [0], ["quick"], settings={}, weights={})
    folder = write_cell(cell, tmp_path)
    options = SlurmOptions(partition="no-such-partition", gpus=0)
    with pytest.raises(EncoderBenchError, match="invalid partition"):
        run_slurm(
            [folder], tmp_path, options, force=False, on_start=print, on_end=print
        )  # fmt: skip
    assert [status.state for status in states(tmp_path)] == ["planned"]
