"""Whole runs killed at random moments end as if nothing had happened; many may write one folder."""

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

import pytest

from encoder_bench.base.record import read_records
from encoder_bench.data.folder import open_data
from tests.in_process import ForkedPython

DATA = "scenes:4:16:2:6"
KILLS, KILLS_OF_A_RUN = 7, 3
"""In all, and before a run is left to end: where the machine gets slower, none would."""
MAX_SECONDS = 1800
FLAGS = ["--data", DATA, "--steps", "4", "--limit", "4", "--device", "cpu", "--quiet"]
FLAGS += ["--set", "training.checkpoint_every=1"]


def command(results: Path, *more: str) -> list[str]:
    run = [sys.executable, "-m", "encoder_bench", "run", *FLAGS, "--results", str(results)]
    return [*run, *more]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ENCODER_BENCH_CACHE": str(cache)}


def started(results: Path, cache: Path, *more: str) -> ForkedPython:
    """Start a run that has imported all already: a kill is then a kill of its work."""
    with results.with_name(f"{results.name}.log").open("ab") as log:
        return ForkedPython(command(results, *more), env=environment(cache), stdout=log)


def whole(results: Path, cache: Path, *more: str) -> float:
    """Do a run without interruption; return its seconds."""
    start = time.monotonic()
    assert started(results, cache, *more).wait(MAX_SECONDS) == 0, log_of(results)
    return time.monotonic() - start


def log_of(results: Path) -> str:
    return results.with_name(f"{results.name}.log").read_text()[-2000:]


def write_mixture(folder: Path) -> list[str]:
    """Write conversations about the scenes in LLaVA's layout; return the options for them."""
    data = open_data(DATA)
    samples = data.samples("vqa", reader="vqav2", source="vqav2", split="train")
    rows = []
    for sample in samples:
        turns = [("human", f"<image>\n{sample.question}"), ("gpt", sample.target)]
        turns += [("human", "Are you sure?"), ("gpt", "Yes.")]
        conversation = [{"from": who, "value": text} for who, text in turns]
        name = sample.image_path.relative_to(data.root.resolve()).as_posix()
        rows.append({"id": sample.sample_id, "image": name, "conversations": conversation})
    file = folder / "rows.json"
    file.write_text(json.dumps(rows))
    recipe = folder / "scenes.toml"
    recipe.write_text(
        f'description = "scenes"\n[[sources]]\nname = "scenes"\nformat = "llava"\n'
        f'path = "{file}"\nimages = "{data.root.resolve()}"\n'
    )
    return ["--mixture", str(recipe)]


@pytest.mark.slow
@pytest.mark.timeout(MAX_SECONDS)
@pytest.mark.parametrize("kind", ["frozen", "joint", "mixture"])
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    more = {"frozen": [], "joint": ["--joint-tune"], "mixture": []}[kind]
    if kind == "mixture":
        more = write_mixture(tmp_path)
    whole(tmp_path / "first", tmp_path / "cache-first", *more)  # starts the server
    seconds = whole(tmp_path / "whole", tmp_path / "cache-whole", *more)
    moment, kills = random.Random(kind), 0
    while kills < KILLS:
        for folder in ("killed", "cache-killed"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        for _ in range(KILLS_OF_A_RUN):
            process = started(tmp_path / "killed", tmp_path / "cache-killed", *more)
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(timeout=moment.uniform(0.05, 0.9) * seconds)
                assert status == 0, log_of(tmp_path / "killed")
                break
            process.kill()
            process.wait()
            kills += 1
        whole(tmp_path / "killed", tmp_path / "cache-killed", *more)
        assert_same(tmp_path / "killed", tmp_path / "whole")


def assert_same(killed: Path, whole: Path) -> None:
    """Scores, checks of training, losses and predictions are those of the run without kills."""
    (expected,), (got,) = read_records(whole), read_records(killed)
    assert got.run_id == expected.run_id
    assert got.tasks == expected.tasks
    assert got.proof == expected.proof
    assert got.training["losses"] == expected.training["losses"]
    files = sorted((whole / "predictions").rglob("*.jsonl"))
    assert files
    for file in files:
        assert (killed / file.relative_to(whole)).read_bytes() == file.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(MAX_SECONDS)
def test_eight_writers_share_a_results_folder(tmp_path: Path) -> None:
    results, cache = tmp_path / "results", tmp_path / "cache"
    running = [started(results, cache, "--seed", str(seed)) for seed in range(8)]
    assert [process.wait(MAX_SECONDS) for process in running] == [0] * 8, log_of(results)
    records = read_records(tmp_path / "results")
    assert sorted(record.seed for record in records) == list(range(8))
    table = [sys.executable, "-m", "encoder_bench", "table", "--results", str(tmp_path / "results")]
    assert subprocess.run(table, capture_output=True, check=False).returncode == 0
