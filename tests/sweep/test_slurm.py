"""A sweep on a real SLURM of one node; one run is preempted, queued again, and resumes.

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

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.recipes import recipe_folder
from encoder_bench.sweep.jobs import all_runs, make_jobs, write_job
from encoder_bench.sweep.launch import SlurmOptions, submit

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not shutil.which("sbatch") or "SLURM_CONF" not in os.environ,
        reason="no SLURM with partitions `low` and `high` here: see the module's docstring",
    ),
]


def wait_for(condition: object, seconds: float) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(1)


def test_a_sweep_finishes_though_a_run_is_preempted(
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
    assert "2 of 2 runs done" in output
    assert sorted(status.starts for status in all_runs(tmp_path)) == [1, 2]
    assert {status.state for status in all_runs(tmp_path)} == {"done"}


def test_a_sweep_that_was_killed_waits_for_its_queued_runs(tmp_path: Path) -> None:
    sweep = [
        *(sys.executable, "-m", "encoder_bench", "sweep", "--encoders", "tiny-mae"),
        *("--modes", "frozen", "--steps", "2", "--data", "scenes:5:64:2:12", "--tasks", "oc"),
        *("--results", str(tmp_path)),
        *("--launcher", "slurm", "--partition", "low", "--gpus", "0", "--cpus", "1"),
    ]
    subprocess.run([*sweep, "--no-wait", "--sbatch", "begin=now+8"], check=True)
    (status,) = all_runs(tmp_path)
    assert status.state == "queued"
    again = subprocess.run(sweep, capture_output=True, text=True, check=True)
    assert "1 of 1 runs done" in again.stdout
    (status,) = all_runs(tmp_path)
    assert (status.state, status.starts) == ("done", 1)


def test_what_sbatch_refuses_is_passed_on(tmp_path: Path) -> None:
    (job,) = make_jobs(["tiny-mae"], ["frozen"], [0], ["quick"], settings={}, weights={})
    folder = write_job(job, tmp_path)
    options = SlurmOptions(partition="no-such-partition", gpus=0)
    with pytest.raises(EncoderBenchError, match="invalid partition"):
        submit([folder], tmp_path, options, force=False)
    assert [status.state for status in all_runs(tmp_path)] == ["planned"]
