"""Sweeps end to end on tiny encoders: planning, resuming, failing cells, killed processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from encoder_bench.base.errors import RecipeError, RecordError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.record import read_records
from encoder_bench.cli.app import app
from encoder_bench.sweep.cells import Cell, make_cells, read_cell, write_cell
from encoder_bench.sweep.launched import launch_command
from encoder_bench.sweep.launchers import local_slots
from encoder_bench.sweep.status import CellStatus, read_all, read_status, write_status
from encoder_bench.sweep.worker import run_cell

DATA = "scenes:5:24:2:6"
SMALL: dict[str, Any] = {"steps": 1, "limit": 2, "tasks": ["oc"], "data": DATA}
NO_CACHE = ("--set", "training.feature_cache=false")
FLAGS = ("--steps", "1", "--limit", "2", "--tasks", "oc", "--data", DATA, *NO_CACHE)


def cells(*encoders: str, weights: dict[str, str] | None = None) -> list[Cell]:
    return make_cells(encoders, ["frozen"], [0], ["quick"], settings=SMALL, weights=weights or {})


def sweep(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["sweep", *FLAGS, *arguments], catch_exceptions=True)


def test_the_matrix_is_complete_and_goes_encoder_by_encoder() -> None:
    made = make_cells(
        ["tiny-mae", "tiny-clip"],
        ["frozen", "joint"],
        [0, 1],
        ["quick"],
        settings=SMALL,
        weights={"tiny-clip": "/w"},
    )
    assert [(c.encoder, c.joint, c.seed) for c in made[:4]] == [
        ("tiny-mae", False, 0),
        ("tiny-mae", False, 1),
        ("tiny-mae", True, 0),
        ("tiny-mae", True, 1),
    ]
    assert len({c.identity(Path("r")) for c in made}) == 8
    assert [c.settings.get("weights") for c in made] == [None] * 4 + ["/w"] * 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--encoders", "tiny-mae,tiny-mae"), "twice"),
        (("--encoders", "tiny-mae", "--modes", "warm"), "--modes warm"),
        (("--encoders", "tiny-mae", "--seeds", "a"), "--seeds a"),
        (("--encoders", ","), "--encoders is empty"),
        (("--encoders", "tiny-mae", "--weights", "tiny-clip=/x"), "does not name tiny-clip"),
        (("--encoders", "tiny-mae,no-such-thing"), "unknown encoder 'no-such-thing'"),
        (("--encoders", "tiny-mae", "--launcher", "cloud"), "unknown launcher 'cloud'"),
    ],
)
def test_a_typing_error_stops_the_sweep_before_anything_runs(
    wrong: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = sweep(*wrong, "--results", str(tmp_path))
    assert message in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_an_identity_follows_what_changes_scores_and_nothing_else(tmp_path: Path) -> None:
    (cell,) = cells("tiny-mae")
    same = Cell(**{**cell.as_json(), "settings": {**SMALL, "tasks": ("oc",)}})
    other = Cell(**{**cell.as_json(), "settings": {**SMALL, "limit": 3}})
    assert cell.identity(tmp_path) == same.identity(tmp_path / "elsewhere")
    assert cell.identity(tmp_path) != other.identity(tmp_path)
    assert read_cell(write_cell(cell, tmp_path)) == cell


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = sweep("--encoders", "tiny-mae", "--dry-run", "--results", str(tmp_path))
    assert result.exit_code == 0
    assert "planned" in result.stdout
    assert not list(tmp_path.iterdir())


def test_one_failing_cell_stops_no_other_and_a_repeat_does_what_is_missing(tmp_path: Path) -> None:
    arguments = ("--encoders", f"dir:{tmp_path / 'no'},tiny-mae", "--modes", "frozen")
    first = sweep(*arguments, "--results", str(tmp_path))
    assert first.exit_code == 1
    assert "1 of 2 cells done" in first.stdout
    states = {cell.encoder: status for _, cell, status in read_all(tmp_path)}
    assert states["tiny-mae"].state == "done"
    failed = states[f"dir:{tmp_path / 'no'}"]
    assert (failed.state, failed.attempts) == ("failed", 1)
    assert str(tmp_path / "no") in failed.message
    sweep(*arguments, "--results", str(tmp_path))
    attempts = {cell.encoder: status.attempts for _, cell, status in read_all(tmp_path)}
    assert attempts == {"tiny-mae": 1, f"dir:{tmp_path / 'no'}": 2}
    shown = CliRunner().invoke(app, ["status", "--results", str(tmp_path), "--json"])
    assert {entry["state"] for entry in json.loads(shown.stdout)} == {"done", "failed"}


def test_status_shows_runs_that_no_sweep_started(tmp_path: Path) -> None:
    def shown() -> str:
        command = ["status", "--results", str(tmp_path)]
        return CliRunner().invoke(app, command, env={"COLUMNS": "200"}).stdout

    assert "no runs here yet" in shown()
    (tmp_path / "checkpoints" / "1234abcd" / "checkpoint-0-00000010").mkdir(parents=True)
    assert "run 1234abcd" in shown()
    assert "unfinished" in shown()
    records = tmp_path / "records"
    records.mkdir()
    (records / "broken.json").write_text("{")
    assert "damaged" in shown()


def test_watch_ends_when_all_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from encoder_bench.cli import status as command

    folder = write_cell(cells("tiny-mae")[0], tmp_path)
    states = iter(["running", "planned", "running", "failed"])

    def next_look(seconds: float) -> None:
        state = next(states)
        status = CellStatus(state=state, host=socket.gethostname(), pid=os.getpid(), message="x")
        write_status(folder, status)

    monkeypatch.setattr(command.time, "sleep", next_look)
    done = CliRunner().invoke(app, ["status", "--watch", "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert next(states, None) is None
    assert "failed" in done.stdout


def test_a_removed_record_is_made_again(tmp_path: Path) -> None:
    sweep("--encoders", "tiny-mae", "--modes", "frozen", "--results", str(tmp_path))
    ((folder, _, status),) = read_all(tmp_path)
    (tmp_path / "records" / f"{status.run_id}.json").unlink()
    assert read_status(folder, tmp_path).state == "planned"


def test_a_killed_local_sweep_goes_on(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "encoder_bench", "sweep", *FLAGS, "--encoders", "tiny-mae"),
        *("--modes", "frozen", "--seeds", "0,1", "--launcher", "local", "--jobs", "1"),
        *("--results", str(tmp_path)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not any(status.state == "running" for *_, status in read_all(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (pid,) = [status.pid for *_, status in read_all(tmp_path) if status.state == "running"]
    process.kill()
    process.wait()
    os.kill(pid, signal.SIGKILL)
    while any(status.state == "running" for *_, status in read_all(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert [status.state for *_, status in read_all(tmp_path)].count("lost") == 1
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "2 of 2 cells done" in again.stdout, again.stderr
    assert sorted(status.attempts for *_, status in read_all(tmp_path)) == [1, 2]


def test_a_process_that_dies_without_a_word_is_a_failed_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encoder_bench.sweep import launchers

    folder = write_cell(cells("tiny-mae")[0], tmp_path)
    write_status(folder, CellStatus(state="running", host=socket.gethostname(), pid=2**22 + 1))
    launchers.close_silent(folder, tmp_path, "line\nKilled: out of memory\n")
    status = read_status(folder, tmp_path)
    assert status.state == "failed"
    assert "Killed: out of memory" in status.message


def test_a_process_elsewhere_lives_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    folder = write_cell(cells("tiny-mae")[0], tmp_path)
    write_status(folder, CellStatus(state="running", host="another-node", pid=1))
    assert read_status(folder, tmp_path).state == "lost"
    (folder / "heartbeat").touch()
    assert read_status(folder, tmp_path).state == "running"
    os.utime(folder / "heartbeat", (0, 0))
    assert read_status(folder, tmp_path).state == "lost"


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text("{}")
    with pytest.raises(RecordError, match=r"cell\.json"):
        read_cell(tmp_path)
    (tmp_path / "status.json").write_text("{")
    assert read_status(tmp_path, tmp_path).state == "planned"


def test_as_many_processes_as_fit() -> None:
    assert local_slots(None, 10, None, 4) == 4
    assert local_slots(3, 2, None, 0) == 2
    assert local_slots(None, 10, 2**60, 0) == 1
    assert local_slots(None, 1, 1, 8) == 1
    assert local_slots(None, 10, None, 8, 4) == 2


def test_a_cell_on_several_gpus_is_launched_by_accelerate(tmp_path: Path) -> None:
    command = launch_command(tmp_path, tmp_path, processes=4, cpu=False, force=True)
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    assert {"--multi_gpu", "--num_processes=4", "encoder_bench.sweep.launched"} < set(command)
    assert command[-1] == "--force"


def test_a_cell_is_done_by_two_processes(tmp_path: Path) -> None:
    (cell,) = make_cells(
        ["tiny-mae"],
        ["frozen"],
        [0],
        ["quick"],
        settings=SMALL | {"device": "cpu"},
        weights={},
    )
    folder = write_cell(cell, tmp_path)
    status = run_cell(folder, tmp_path, QuietReporter(), processes=2)
    assert (status.state, status.attempts) == ("done", 1), status.message
    (record,) = read_records(tmp_path)
    assert record.training["processes"] == 2


def test_more_gpus_than_there_are_is_one_clear_line(tmp_path: Path) -> None:
    result = sweep("--encoders", "tiny-mae", "--gpus", "99", "--results", str(tmp_path))
    assert "--gpus 99: this machine has" in str(result.exception)


def test_weights_belong_to_an_encoder_of_the_matrix() -> None:
    with pytest.raises(RecipeError, match="does not name"):
        cells("tiny-mae", weights={"tiny-dino": "/x"})


def test_a_cell_names_a_command_that_does_it() -> None:
    cell = Cell("tiny-mae", True, 2, "/somewhere/mine.toml", {"data": "/secret/photos"})
    assert cell.command == (
        "encoder-bench sweep --encoders tiny-mae --modes joint --seeds 2 --adapter mine.toml "
        "--data DIR"
    )
