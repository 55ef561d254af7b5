"""Closed streams, output in ASCII, no home, `~` in options, folders that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from result_builders import make_record

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.paths import cache_dir
from encoder_bench.base.record import write_record
from encoder_bench.cli import main
from encoder_bench.metrics.metric import find_metric
from tests.in_process import encoder_bench


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_record(folder / "results", make_record(controls={"no-image": 30.0}))
    return folder


def shell(line: str, home: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = f"exec {sys.executable} -m encoder_bench {line}"
    own = {**os.environ, "HOME": str(home), "NO_COLOR": "1", "COLUMNS": "120", **environment}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, timeout=240, env=own, check=False
    )


TABLE, MISSING = "table --results={home}/results", "table --results={home}/nothing"


@pytest.mark.parametrize(
    ("line", "environment", "status", "words"),
    [
        (TABLE + " <&-", {}, 0, "50.0"),
        (TABLE + " --format json 2>&-", {}, 0, '"VQA Acc": 50.0'),
        (TABLE + " >&-", {}, 0, ""),
        (TABLE + " <&- >&- 2>&-", {}, 0, ""),
        (MISSING + " <&- >&-", {}, 1, "error: "),
        (MISSING + " 2>&-", {}, 1, ""),
        (TABLE, {"PYTHONIOENCODING": "ascii"}, 0, "50.0 +/-2.0"),
        (TABLE, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, 0, "50.0 +/-2.0"),
        (TABLE + " --format md", {"PYTHONIOENCODING": "latin-1"}, 0, "50.0"),
    ],
)
def test_odd_streams_are_one_clear_line_or_plain_success(
    line: str, environment: dict[str, str], status: int, words: str, home: Path
) -> None:
    result = shell(line.format(home=home), home, **environment)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    output = (result.stdout + result.stderr).decode(encoding)
    assert result.returncode == status, output
    assert "Traceback" not in output
    assert words in output
    if status:
        assert len(result.stderr.decode().splitlines()) <= 1


@pytest.mark.parametrize(
    ("line", "environment", "status", "words"),
    [
        ("table --results=~/results", {}, 0, "50.0"),
        ("table --results '~/results'", {}, 0, "50.0"),
        ("table --results=~/results/../none", {}, 1, "{home}/results/../none"),
        ("run --dry-run --adapter='~/no.toml'", {}, 1, "{home}/no.toml"),
        ("run --dry-run --data '~/no'", {}, 1, "--data {home}/no"),
        ("run --dry-run --data coco", {"COCO": "~/none"}, 1, "COCO {home}/none"),
        ("cache ls", {"ENCODER_BENCH_CACHE": "~/caches"}, 0, "{home}/caches"),
        ("cache ls", {"ENCODER_BENCH_CACHE": "", "XDG_CACHE_HOME": "~/x"}, 0, "{home}/x"),
        (TABLE + " --write --results /proc", {}, 1, "error: "),
        ("data questions {home}/no.json {home}", {}, 1, "{home}/no.json"),
        ("report --results={home}/results --output /proc/nothing/r.html", {}, 1, "/proc/nothing"),
    ],
)
def test_an_odd_folder_is_one_clear_line_or_plain_success(
    line: str, environment: dict[str, str], status: int, words: str, home: Path
) -> None:
    arguments = shlex.split(line.format(home=home))
    result = encoder_bench(*arguments, HOME=str(home), **environment)
    output = result.stdout + result.stderr
    assert result.returncode == status, output
    assert words.format(home=home) in output.replace("\n", "")
    if status:
        assert len(result.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder with a run, a cache and data that anyone may read, and this user can write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record = make_record(controls={"no-image": 30.0})
        write_record(folder / "results", record)
        for kind in ("predictions", "checkpoints"):
            (folder / "results" / kind / record.run_id / "inner").mkdir(parents=True)
        (folder / "cache").mkdir()
        (folder / "secret").mkdir()
        cache = {"ENCODER_BENCH_CACHE": str(folder / "cache")}
        drawn = "scenes:4:4:2:2"
        assert encoder_bench("data", "check", drawn, **cache).returncode == 0
        shutil.copytree(next((folder / "cache" / "scenes").iterdir()), folder / "data")
        data = str(folder / "data")
        dry_run = encoder_bench("run", "--dry-run", "--data", data, **cache)
        assert dry_run.returncode == 0  # imports what is needed, and makes the data's index
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        (folder / "secret").chmod(0)
        yield folder
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)


@contextlib.contextmanager
def as_a_user() -> Iterator[None]:
    """Do without root's rights, for whom no folder is read-only."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize(
    ("line", "cache", "status", "words"),
    [
        ("table --results {0}/results", "new", 0, "50.0"),
        ("table --results {0}/results --write", "new", 1, "cannot write {0}/results/table.md: "),
        ("status --results {0}/results", "new", 0, "1 done"),
        ("results ls --results {0}/results", "new", 0, "frozen"),
        ("results rm dino/frozen --results {0}/results", "new", 1, "Permission denied"),
        ("report --no-features --results {0}/results", "new", 1, "{0}/results/report.html: "),
        ("data check {0}/data", "cache", 0, "share no image"),
        ("data check {0}/data", "locked", 1, "set ENCODER_BENCH_CACHE to a folder that can be"),
        ("data check scenes:4:5:2:2", "cache", 1, "set ENCODER_BENCH_CACHE to a folder that can"),
        ("cache ls", "cache", 0, "captions test of"),
        ("cache prune --most 0", "cache", 1, "Permission denied"),
        ("run --dry-run --data {0}/data", "cache", 0, "estimated"),
        ("run --dry-run --data {0}/secret", "cache", 1, "{0}/secret/coco/train2017: Perm"),
        ("run --dry-run --weights {0}/secret", "cache", 1, "--weights {0}/secret: Permission"),
        ("run --dry-run --llm {0}/secret", "cache", 1, "LLM {0}/secret: Permission"),
        ("run --dry-run -e dir:{0}/secret", "cache", 1, "encoder dir:{0}/secret: Permission"),
        ("run --dry-run --adapter {0}/secret/a.toml", "cache", 1, "{0}/secret/a.toml: Permission"),
    ],
)
def test_a_read_only_folder_is_one_clear_line_or_plain_success(
    line: str, cache: str, status: int, words: str, shared: Path, tmp_path: Path
) -> None:
    folder = tempfile.gettempdir() if cache == "new" else shared / cache
    before = {path: path.stat().st_size for path in shared.rglob("*")}
    with as_a_user():
        result = encoder_bench(
            *shlex.split(line.format(shared)), ENCODER_BENCH_CACHE=str(folder), HOME=str(tmp_path)
        )
    output = result.stdout + result.stderr
    assert result.returncode == status, output
    assert words.format(shared) in output.replace("\n", "")
    assert ("error: " in output) == bool(status)
    assert "removed" not in output
    assert {path: path.stat().st_size for path in shared.rglob("*")} == before


@pytest.mark.parametrize("given", [{}, {"ENCODER_BENCH_CACHE": "/tmp/caches"}])
def test_a_user_without_a_home_has_caches_in_the_temporary_folder(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "ENCODER_BENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    result = encoder_bench("cache", "ls", **given)
    assert result.returncode == 0, result.stderr
    assert f"caches go to {tempfile.gettempdir()}/encoder-bench-{os.getuid()}" in result.stderr
    expected = given.get("ENCODER_BENCH_CACHE", f"encoder-bench-{os.getuid()}/.cache")
    assert expected in result.stdout


def test_a_home_of_dockers_unknown_user_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ENCODER_BENCH_CACHE", raising=False)
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/")
    result = encoder_bench("cache", "ls", HOME="/")
    assert result.returncode == 0, result.stderr
    assert f"caches go to {tempfile.gettempdir()}/encoder-bench-{os.getuid()}" in result.stderr


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    run = ["run", "--data", "scenes:5:8:2:2", "--steps", "1", "--tasks", "oc", "--limit", "1"]
    encoder_bench("data", "check", "scenes:5:8:2:2")  # so that the run itself is the first to lock
    monkeypatch.setattr(fcntl, "flock", refuse)
    result = encoder_bench(*run, "--results", str(tmp_path / "results"))
    assert result.returncode == 1
    assert os.strerror(number) in result.stderr
    assert str(tmp_path / "results") in result.stderr or "ENCODER_BENCH_CACHE" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_a_home_the_library_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ENCODER_BENCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(EncoderBenchError, match="set HOME, or ENCODER_BENCH_CACHE"):
        cache_dir()


@pytest.mark.parametrize("blocked", ["vl_convert", "altair"])
def test_a_missing_extra_is_named(blocked: str, home: Path) -> None:
    code = (
        f"import sys\nsys.modules[{blocked!r}] = None\n"
        f"sys.argv[1:] = ['report', '--results={home}/results', '--no-features']\n"
        "from encoder_bench.cli import main\nmain()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 1
    assert "pip install 'encoder-bench[report]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_slurm_without_its_extra_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    where = f"--results={home}/new"
    result = encoder_bench("sweep", "--encoders", "tiny-deit", "--launcher", "slurm", where)
    assert result.returncode == 1
    assert "pip install 'encoder-bench[slurm]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("metric", ["bleu4", "rouge_l", "meteor", "spice"])
def test_a_caption_metric_without_its_extra_is_not_available_and_says_so(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [each for each in sys.modules if each.startswith("pycocoevalcap")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.setattr("encoder_bench.metrics.java.find_spec", lambda name: None)
    measure = find_metric(metric).measure(["a dog runs"], [["a dog is running"]])
    assert measure.reason
    assert "encoder-bench[java]" in measure.reason or "setup spice" in measure.reason


def test_windows_is_sent_to_wsl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="on Windows use WSL"):
        main()
