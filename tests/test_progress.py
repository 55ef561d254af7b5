"""What the reporters print, and where."""

from __future__ import annotations

import builtins
import sys
from types import ModuleType

import pytest

from encoder_bench.base.progress import PlainReporter, QuietReporter, RichReporter, make_reporter


def test_plain_lines_carry_count_rate_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainReporter(interval_seconds=0).phase("training", 4, "steps") as phase:
        phase.advance(2, loss="1.50")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "training: started"
    assert lines[1].startswith("training: 2/4 steps, ")
    assert lines[1].endswith("loss 1.50")
    assert lines[2].startswith("training: done in ")


def test_plain_lines_are_rare_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainReporter().phase("training", 100, "steps") as phase:
        for _ in range(100):
            phase.advance()
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_quiet_says_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = QuietReporter()
    with reporter.phase("training") as phase:
        phase.advance(loss="1")
    reporter.note("a note")
    reporter.warn("random weights")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "warning: random weights\n"


def test_bars_go_to_standard_error_and_take_any_text(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = RichReporter()
    with reporter.phase("vqa", 2, "samples") as phase:
        phase.advance(2, accuracy="50%")
    assert "vqa: 2 samples in 0.0 s accuracy 50%" in capsys.readouterr().err
    reporter.note("[not markup]")
    reporter.warn("careful")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "[not markup]" in captured.err
    assert "warning: careful" in captured.err


def test_the_face_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_reporter(quiet=True), QuietReporter)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))  # imported, not running
    assert isinstance(make_reporter(quiet=False), PlainReporter)
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
    assert isinstance(make_reporter(quiet=False), RichReporter)
