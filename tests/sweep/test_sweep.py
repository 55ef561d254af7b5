"""Sweeps end to end on tiny encoders: planning, resuming, failed runs, killed processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from encoder_bench.base.errors import RecordError
from encoder_bench.base.limits import usable_cores
from encoder_bench.base.recipes import recipe_folder
from encoder_bench.base.record import read_records
from encoder_bench.cli import options
from encoder_bench.cli.app import app
from encoder_bench.results.grouping import group_records
from encoder_bench.sweep import launch
from encoder_bench.sweep.jobs import (
    STARTED,
    Job,
    all_runs,
    job_status,
    make_jobs,
    read_job,
    with_twins,
    write_job,
)
from encoder_bench.sweep.launch import close_job, local_slots, start_job, stop_job, visible_gpus
from tests.in_process import ForkedPython, encoder_bench, on_two_processes

DATA = "scenes:5:24:2:6"
SMALL: dict[str, Any] = {"steps": 1, "limit": 2, "tasks": ["oc"], "data": DATA}
NO_CACHE = ("--set", "training.feature_cache=false")
FLAGS = ("--steps", "1", "--limit", "2", "--tasks", "oc", "--data", DATA, *NO_CACHE)


def job(**changes: Any) -> Job:
    (made,) = make_jobs(
        ["tiny-mae"], ["frozen"], [0], ["quick"], settings=SMALL | changes, weights={}
    )
    return made


def sweep(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["sweep", *FLAGS, *arguments], catch_exceptions=True)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start within milliseconds; another test starts them as a user's sweep does."""
    forked = SimpleNamespace(Popen=ForkedPython, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(launch, "subprocess", forked)


def wait_until(condition: Any, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def test_the_matrix_is_complete_and_goes_encoder_by_encoder() -> None:
    made = make_jobs(
        ["tiny-mae", "tiny-clip"],
        ["frozen", "joint"],
        [0, 1],
        ["quick"],
        settings=SMALL,
        weights={"tiny-clip": Path("/w")},
    )
    assert [(j.encoder, j.joint, j.seed) for j in made[:4]] == [
        ("tiny-mae", False, 0),
        ("tiny-mae", False, 1),
        ("tiny-mae", True, 0),
        ("tiny-mae", True, 1),
    ]
    assert len({j.folder(Path("r")) for j in made}) == 8
    assert [j.settings.get("weights") for j in made] == [None] * 4 + ["/w"] * 4


def test_encoders_are_listed_or_repeated_and_a_folder_may_hold_commas(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    given = ["tiny-mae, tiny-dino", f"dir:{tmp_path}/a,b", "tiny-clip", ","]
    names = options._encoder_names(given)
    assert names == ["tiny-mae", "tiny-dino", f"dir:{tmp_path}/a,b", "tiny-clip"]
    result = CliRunner().invoke(app, ["probe", "-e", "tiny-mae,no-such-thing", "--data", "nowhere"])
    assert "unknown encoder 'no-such-thing'" in str(result.exception)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--encoders", "tiny-mae,tiny-mae"), "--encoders names one twice"),
        (("--encoders", "tiny-mae", "--modes", "warm"), "--modes warm"),
        (("--encoders", "tiny-mae", "--seeds", "a"), "--seeds a"),
        (("--encoders", ","), "--encoders is empty"),
        (("--encoders", "tiny-mae,tiny-dino", "--weights", "tiny-clip=/x"), "tiny-clip"),
        (("--encoders", "tiny-mae,no-such-thing"), "unknown encoder 'no-such-thing'"),
        (
            ("--encoders", "tiny-mae", "--launcher", "cloud"),
            "'cloud' is not one of 'local'",
        ),
        (("--encoders", "tiny-mae", "--data", "/nowhere"), "--data /nowhere"),
        (("--encoders", "tiny-mae,dir:/nowhere"), "encoder dir:/nowhere: No such file"),
        (("--encoders", "tiny-mae,tiny-dino", "--weights", "tiny-dino=/no"), "--weights /no"),
    ],
)
def test_a_typing_error_stops_the_sweep_before_anything_runs(
    wrong: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = sweep(*wrong, "--results", str(tmp_path))
    assert message in f"{result.exception} {result.output}"
    assert result.exit_code
    assert not list(tmp_path.iterdir())


def test_more_gpus_than_there_are_is_one_clear_line(tmp_path: Path) -> None:
    result = sweep("--encoders", "tiny-mae", "--gpus", "99", "--results", str(tmp_path))
    assert "--gpus 99: this machine has" in str(result.exception)


def test_a_folder_follows_what_changes_scores_and_nothing_else(tmp_path: Path) -> None:
    same = Job(**{**asdict(job()), "settings": {**SMALL, "tasks": ("oc",)}})
    assert job().folder(tmp_path).name == same.folder(tmp_path / "elsewhere").name
    assert job().folder(tmp_path) != job(limit=3).folder(tmp_path)
    assert read_job(write_job(job(), tmp_path)) == job()


def test_a_job_names_a_command_that_does_it() -> None:
    made = Job("tiny-mae", True, 2, "/somewhere/mine.toml", {"data": "/secret/photos"})
    assert made.command == (
        "encoder-bench sweep --encoders tiny-mae --modes joint --seeds 2 --adapter mine.toml "
        "--data DIR"
    )


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = sweep("--encoders", "tiny-mae", "--dry-run", "--results", str(tmp_path))
    assert result.exit_code == 0
    assert "planned" in result.stdout
    assert not list(tmp_path.iterdir())


def test_a_failed_run_does_not_stop_the_rest_and_a_repeat_does_what_is_missing(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    broken = f"dir:{tmp_path / 'no'}"
    (tmp_path / "no").mkdir()
    arguments = ("--encoders", f"{broken},tiny-mae", "--modes", "frozen", "--jobs", "1")

    def swept(*, todo: int) -> dict[str, Any]:
        result = sweep(*arguments, "--results", str(tmp_path))
        assert result.exit_code == 1
        assert f"{todo - 1} of {todo} runs done" in result.stdout
        assert f"failed: {broken}" in result.stderr
        return {run.job.encoder: run for run in all_runs(tmp_path) if run.job}

    runs = swept(todo=2)
    request.getfixturevalue("forked_workers")  # the first ones were processes of a real sweep's
    assert (runs["tiny-mae"].state, runs["tiny-mae"].starts) == ("done", 1)
    assert (runs[broken].state, runs[broken].starts) == ("failed", 1)
    assert str(tmp_path / "no") in runs[broken].message
    assert {name: run.starts for name, run in swept(todo=1).items()} == {"tiny-mae": 1, broken: 2}
    shown = CliRunner().invoke(app, ["status", "--results", str(tmp_path), "--json"])
    assert {entry["state"] for entry in json.loads(shown.stdout)} == {"done", "failed"}
    (tmp_path / "records" / f"{runs['tiny-mae'].run_id}.json").unlink()
    assert {run.state for run in all_runs(tmp_path)} == {"planned", "failed"}


@pytest.mark.usefixtures("forked_workers")
def test_twins_are_run_beside_their_encoders_and_their_seeds_share_a_row(tmp_path: Path) -> None:
    where = ("--seeds", "0,1", "--modes", "frozen", "--results", str(tmp_path))
    result = sweep("--encoders", "tiny-mae,random:tiny-clip", "--twins", *where)
    assert result.exit_code == 0, result.output
    (group,) = group_records(read_records(tmp_path))
    rows = [(row.records[0].encoder.name, len(row.records), row.pretrained) for row in group.rows]
    assert rows == [
        ("tiny-mae", 2, True), ("random:tiny-clip", 2, False), ("random:tiny-mae", 2, False),
    ]  # fmt: skip
    assert len({record.encoder.fingerprint for record in group.records}) == 5


def test_a_twin_reads_the_configuration_of_its_encoders_weights() -> None:
    names, weights = with_twins(["a", "random:b", "c"], {"c": Path("/w")})
    assert names == ["a", "random:a", "random:b", "c", "random:c"]
    assert weights == {"c": Path("/w"), "random:c": Path("/w")}


def test_status_shows_runs_that_no_sweep_started(tmp_path: Path) -> None:
    def shown() -> str:
        command = ["status", "--results", str(tmp_path)]
        return CliRunner().invoke(app, command, env={"COLUMNS": "200"}).stdout

    assert "no runs here yet" in shown()
    folder = tmp_path / "checkpoints" / "1234abcd"
    (folder / "checkpoint-0-00000010").mkdir(parents=True)
    assert "run 1234abcd" in shown()
    assert "interrupted" in shown()
    with FileLock(folder / ".lock"):
        assert "running" in shown()
    records = tmp_path / "records"
    records.mkdir()
    (records / "broken.json").write_text("{")
    assert "damaged" in shown()


def test_a_state_follows_from_the_files(tmp_path: Path) -> None:
    folder = write_job(job(), tmp_path)

    def status() -> tuple[str, str]:
        found = job_status(folder, tmp_path)
        return found.state, found.message

    assert status() == ("planned", "")
    (folder / "slurm.txt").write_text("12_0")
    assert status()[0] == "queued"
    (folder / "log.txt").write_text(f"{STARTED}here\ntraining: 10/20 steps\n")
    with FileLock(folder / ".lock"):
        assert status() == ("running", "training: 10/20 steps")
    (folder / "slurm.txt").unlink()
    assert status() == ("interrupted", "training: 10/20 steps")
    close_job(folder, tmp_path, "its process ended with status -9")
    state, message = status()
    assert state == "failed"
    assert "status -9" in message
    assert "its log ends: training: 10/20 steps" in message
    (folder / "run_id.txt").write_text("abcd\n")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "abcd.json").touch()
    assert status()[0] == "done"


def test_watch_ends_when_all_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from encoder_bench.cli import sweep as command

    folder = write_job(job(), tmp_path)
    lock = FileLock(folder / ".lock")
    polls = iter([lock.acquire, lock.release, lock.acquire, lock.release, "failed"])

    def next_poll(seconds: float) -> None:
        act = next(polls)
        act() if callable(act) else (folder / "error.txt").write_text("it failed")

    monkeypatch.setattr(command.time, "sleep", next_poll)
    done = CliRunner().invoke(app, ["status", "--watch", "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert next(polls, None) is None
    assert "it failed" in done.stdout


@pytest.mark.usefixtures("forked_workers")
def test_a_killed_sweep_resumes(tmp_path: Path) -> None:
    command = [
        *("sweep", *FLAGS, "--encoders", "tiny-mae", "--modes", "frozen", "--seeds", "0,1"),
        *("--jobs", "1", "--results", str(tmp_path)),
    ]

    def running() -> bool:
        return any(run.state == "running" for run in all_runs(tmp_path))

    process = ForkedPython([sys.executable, "-m", "encoder_bench", *command])
    wait_until(running)
    (worker,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert running(), "a worker outlives a killed sweep"
    worker.send_signal(signal.SIGKILL)
    wait_until(lambda: not running())
    assert [run.state for run in all_runs(tmp_path)].count("interrupted") == 1
    again = encoder_bench(*command)
    assert "2 of 2 runs done" in again.stdout, again.stderr
    assert sorted(run.starts for run in all_runs(tmp_path)) == [1, 2]


def test_a_run_is_done_by_two_processes(tmp_path: Path) -> None:
    folder = write_job(job(device="cpu"), tmp_path)
    worker, log = ("encoder_bench.sweep.jobs", str(folder), str(tmp_path)), folder / "log.txt"
    assert on_two_processes(*worker, log=log) == (0, 0), log.read_text()
    status = job_status(folder, tmp_path)
    assert (status.state, status.starts) == ("done", 1), log.read_text()
    (record,) = read_records(tmp_path)
    assert record.training["processes"] == 2


def test_a_job_that_is_stopped_leaves_no_process() -> None:
    waiting = subprocess.Popen(["sh", "-c", "sleep 600 & wait"], start_new_session=True)
    wait_until(psutil.Process(waiting.pid).children)
    (child,) = psutil.Process(waiting.pid).children()
    stop_job(waiting)
    assert waiting.returncode == -signal.SIGTERM
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10)


_ENDLESS = """
import signal, subprocess, sys
from pathlib import Path
from encoder_bench.sweep import launch
signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and & let it be ignored
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
def start(folder, *_, **__):
    job = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(job.pid, flush=True)
    return job
launch.start_job = start
jobs = [Path(sys.argv[1])]
list(launch.run_local(jobs, jobs[0], slots=1, gpus_per_job=1, memory_bytes=0, force=False))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_sweep_that_is_stopped_stops_its_jobs(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _ENDLESS, str(tmp_path)]
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert sweep.stdout is not None
    job = psutil.Process(int(sweep.stdout.readline()))
    sweep.send_signal(number)
    assert sweep.wait(60) in (128 + number, -number)
    wait_until(lambda: not job.is_running() or job.status() == psutil.STATUS_ZOMBIE, 10)


def test_several_processes_are_started_by_torchrun_on_their_own_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch  # which starts processes itself

    started: dict[str, Any] = {}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def popen(command: list[str], **options: Any) -> None:
        started.update(command=command, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    start_job(tmp_path, tmp_path, processes=4, threads=8, gpus=["4", "5", "6", "7"], force=True)
    assert started["command"][1:3] == ["-m", "torch.distributed.run"]
    assert {"--nproc-per-node=4", "encoder_bench.sweep.jobs"} < set(started["command"])
    assert started["command"][-1] == "--force"
    assert started["env"]["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert started["env"]["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(torch.version, "hip", "7.2")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "6,7")
    assert visible_gpus() == ["6", "7"]
    start_job(tmp_path, tmp_path, processes=1, threads=8, gpus=["7"], force=True)
    assert started["env"]["HIP_VISIBLE_DEVICES"] == "7"
    assert started["env"]["OMP_NUM_THREADS"] == "3"


def test_a_damaged_job_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(RecordError, match=r"job\.json"):
        read_job(tmp_path)


@pytest.mark.parametrize(
    ("stated", "gpus"),
    [
        ("2,5", ["2", "5"]),
        (" 0 , 1 ", ["0", "1"]),
        ("GPU-8932f937-d72c,GPU-1f23", ["GPU-8932f937-d72c", "GPU-1f23"]),
        ("MIG-3c2d/7/0", ["MIG-3c2d/7/0"]),
        ("0,-1,1", ["0"]),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_gpus_have_the_names_that_a_scheduler_gives(
    stated: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", stated)
    assert visible_gpus() == gpus


def test_as_many_processes_as_fit() -> None:
    assert local_slots(None, 10, 0, 4) == 4
    assert local_slots(3, 2, 0, 0) == 2
    assert local_slots(None, 10, 2**60, 0) == 1
    assert local_slots(None, 1, 1, 8) == 1
    assert local_slots(None, 10, 0, 8, 4) == 2
    assert local_slots(None, 10**9, 0, 0) == max(1, usable_cores() // 2)


def test_a_job_is_of_the_files_that_it_reads(tmp_path: Path) -> None:
    recipe = (recipe_folder("mixtures") / "llava-pretrain.toml").read_text()
    one, other = tmp_path / "one.toml", tmp_path / "two" / "one.toml"
    other.parent.mkdir()
    one.write_text(recipe)
    other.write_text(recipe.replace('path = "', 'path = "elsewhere/'))
    weights = tmp_path / "last.safetensors"
    weights.write_bytes(b"one")
    plain = job().folder(tmp_path)
    trained_on = [job(mixture=[str(path)]).folder(tmp_path) for path in (one, other)]
    with_file = job(weights=str(weights)).folder(tmp_path)
    weights.write_bytes(b"other")
    assert len({plain, *trained_on, with_file, job(weights=str(weights)).folder(tmp_path)}) == 5


@pytest.mark.usefixtures("forked_workers")
def test_a_run_whose_recipe_has_changed_while_it_waited_is_not_done(tmp_path: Path) -> None:
    adapter = tmp_path / "mine.toml"
    adapter.write_text((recipe_folder("adapters") / "quick.toml").read_text())
    made = Job(**{**asdict(job()), "adapter": str(adapter)})
    folder = write_job(made, tmp_path)
    adapter.write_text(adapter.read_text().replace("images_per_step = 8", "images_per_step = 4"))
    assert made.folder(tmp_path) != folder
    process = start_job(folder, tmp_path, processes=1, threads=1, force=False)
    assert process.wait() == 1
    status = job_status(folder, tmp_path)
    assert status.state == "failed"
    assert "have changed since this run was planned" in status.message


def test_two_names_of_one_run_are_refused(tmp_path: Path) -> None:
    text = (recipe_folder("adapters") / "quick.toml").read_text()
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(text)
    adapters = f"{tmp_path}/a.toml,{tmp_path}/b.toml"
    result = sweep("--encoders", "tiny-mae", "--adapter", adapters, "--results", str(tmp_path))
    assert "differ in nothing that could change a score" in str(result.exception)


def test_a_job_that_slurm_repeats_resumes_though_it_was_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced = []

    def note(*_: Any, force: bool, **__: Any) -> Any:
        forced.append(force)
        return SimpleNamespace(wait=lambda: 0, pid=0)

    monkeypatch.setattr(launch, "start_job", note)
    monkeypatch.setattr(launch, "stop_job", lambda _: None)
    monkeypatch.setattr(launch, "close_job", lambda *_: None)
    monkeypatch.setattr(launch.signal, "signal", lambda *_: None)
    queued = launch.SlurmJob(tmp_path, tmp_path, launch.SlurmOptions(gpus=0), force=True)
    for count in ("0", "1"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        queued()
    assert forced == [True, False]


def test_a_job_that_left_the_queue_is_not_shown_as_queued(tmp_path: Path) -> None:
    folder = write_job(job(), tmp_path)
    (folder / "slurm.txt").write_text("7_1\n")
    states = [job_status(folder, tmp_path, queue=queue).state for queue in (None, {"7_1"}, set())]
    assert states == ["queued", "queued", "interrupted"]
