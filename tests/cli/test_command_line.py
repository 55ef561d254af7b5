"""The command line as a user meets it: help, names, errors, exit status; no model is built here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from encoder_bench.cli.app import app
from tests.in_process import encoder_bench


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "encoder_bench", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"},
        check=False,
    )


def test_no_argument_prints_the_manual() -> None:
    result = in_a_process()
    assert "Which pretrained visual encoder" in result.stdout
    for command in ("run", "encoders", "table"):
        assert command in result.stdout


def commands(group: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield every command and group of commands below `group`."""
    for child, command in getattr(group, "commands", {}).items():
        yield (*name, child)
        yield from commands(command, (*name, child))


@pytest.mark.parametrize("command", list(commands(get_command(app))), ids=" ".join)
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"], prog_name="encoder-bench")
    assert result.exit_code == 0, result.exception
    assert "Usage: encoder-bench " + " ".join(command) in result.output


@pytest.mark.parametrize("command", list(commands(get_command(app))), ids=" ".join)
def test_help_keeps_every_word_on_a_narrow_terminal(command: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80"}).output
    words = set(re.sub(r"[│╭╮╰╯─`]", " ", shown).split())
    found: Any = get_command(app)
    for name in command:
        found = found.commands[name]
    texts = [found.help or ""]
    for each in found.params:
        texts += [getattr(each, "help", None) or "", each.metavar or ""]
    plain = re.sub(r"\[/?bold\]", "", " ".join(texts)).replace("\\[", "[")
    assert set(plain.replace("`", " ").split()) - words == set()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from encoder_bench.cli.app import app\n"
        "try: app(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'timm', 'open_clip', 'pandas', 'scipy', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "HEAVY []" in result.stdout


def test_an_unknown_encoder_is_one_line_with_a_suggestion(tmp_path: Path) -> None:
    result = in_a_process("run", "--encoder", "dinov2-xl", "--results", str(tmp_path))
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "unknown encoder 'dinov2-xl'; did you mean" in result.stderr
    assert "dinov2-l" in result.stderr


def test_debug_shows_the_traceback() -> None:
    result = in_a_process("run", "--encoder", "nothing-like-it", "--debug")
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_an_interrupted_command_says_that_it_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("encoder_bench.cli.cache.list_features", interrupted)
    result = encoder_bench("cache", "ls")
    assert result.returncode == 130
    assert "error: interrupted; what was computed is kept" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "training.precison=bfloat16"], "did you mean 'precision'"),
        (["--set", "nonsense"], "give KEY=VALUE"),
        (["--set", "training.precision="], "give KEY=VALUE"),
        (["--layer", "last"], "give whole numbers"),
        (["--limit", "0"], "--limit 0"),
        (["--tasks", ""], "--tasks is empty"),
        (["--tasks", "vqa,vqa"], "twice"),
        (["--tasks", "vqq"], "did you mean 'vqa'"),
        (["--adapter", "quik"], "did you mean 'quick'"),
        (["--data", "/nowhere/at/all"], "--data /nowhere/at/all"),
        (["--train-data", "/nowhere/at/all", "--dry-run"], "--train-data /nowhere/at/all"),
        (["--train-data", "scenes:1:2", "--dry-run"], "--train-data scenes:1:2"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "gpu", "--dry-run"], "--device gpu: no such device"),
        (["--device", "gpu"], "--device gpu: no such device"),
        (["--device", "meta"], "--device meta: no such device"),
        (["--weights", "/nowhere"], "--weights /nowhere: No such file"),
        (["--weights", "tiny-deit=/no", "--dry-run"], "--weights /no: No such file"),
        (["-e", "tiny-mae+tiny-dino", "--weights", "/", "--dry-run"], "works on one encoder"),
        (["--encoder", "dir:/nowhere", "--dry-run"], "encoder dir:/nowhere: No such file"),
        (["-e", "random:dir:/no+tiny-mae", "--dry-run"], "dir:/no: No such file"),
        (["--adapter", "/nowhere.toml", "--dry-run"], "/nowhere.toml: no such recipe file"),
        (["--tasks", "/nowhere.toml", "--dry-run"], "/nowhere.toml: no such recipe file"),
        (["--mixture", "/nowhere.toml", "--dry-run"], "/nowhere.toml: no such recipe file"),
        (["--mixture", "llava-instruct", "--data", "/", "--dry-run"], "llava_v1_5_mix665k.json"),
        (["--llm", "/nowhere", "--dry-run"], "LLM /nowhere: no such file or folder"),
        (["--llm", "nowhere.gguf", "--dry-run"], "LLM nowhere.gguf: no such file or folder"),
        (["--llm", "smolm2", "--dry-run"], "did you mean 'smollm2-135m'"),
        (["--llm", "x" * 300, "--dry-run"], "xxx: File name too long"),
        (["--llm", "~nobody-here/x", "--dry-run"], "LLM ~nobody-here/x: no such file or folder"),
        (["--data", "~nobody-here", "--dry-run"], "--data ~nobody-here: no such folder"),
        (["-e", "dir:~nobody-here", "--dry-run"], "nobody-here: No such file"),
        (["--adapter", "~nobody-here/x.toml", "--dry-run"], "no such recipe file"),
        (["--llm", "/", "--dry-run"], "LLM folder /: it has no config.json"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    result = encoder_bench("run", "--results", str(tmp_path), *arguments)
    assert result.returncode == 1, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert words in line


def test_a_table_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    result = encoder_bench("table", "--results", str(tmp_path))
    assert result.returncode == 1
    assert "encoder-bench run" in result.stderr


def test_a_published_encoder_on_drawn_scenes_is_warned_of_and_the_plan_is_one_page() -> None:
    result = encoder_bench("run", "--encoder", "dinov2-l", "--dry-run", COLUMNS="80")
    assert result.returncode == 0, result.stderr
    assert "encoder-bench run --encoder dinov2-l --adapter laptop --data DIR" in result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) < 110
    assert "time" in lines[1]
    assert re.search(r"tasks on [\d,]+ samples \d+", lines[1]), lines[1]
    for data in ("scenes", "/anywhere"):
        quiet = encoder_bench("run", "--data", data, "--dry-run")
        assert "warning" not in quiet.stderr


@pytest.mark.parametrize("width", [60, 80, 120, 250])
def test_the_list_of_encoders_shows_weights_and_names_the_columns_it_lacks(width: int) -> None:
    output = encoder_bench("encoders", COLUMNS=str(width)).stdout
    assert "hf:openai/clip-vit-large-patch14 " in output.replace("\n", " \n")
    header, text = output.splitlines()[0], " ".join(output.split())
    for column in ("params", "GFLOPs", "px", "tokens", "supervision", "encoder", "pretraining"):
        assert (column in header.split()) != (column in text.partition("also shows: ")[2])
