"""The command line as a user gets it, without the seconds that a new process spends on imports."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO
from unittest import mock

from encoder_bench.cli import main, options


def encoder_bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Do what `python -m encoder_bench ARGUMENTS` does, in this process."""
    own = {"COLUMNS": "120", "NO_COLOR": "1", **environment}
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, own),
        mock.patch.object(sys, "argv", ["encoder-bench", *arguments]),
        mock.patch.object(options, "debug", options.debug),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = _status(end)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


_NEEDED = (
    "accelerate",
    "encoder_bench.pipeline.run",
    "huggingface_hub.hf_api",
    "inflect",
    "torch._dynamo",
    "torchvision",
    "transformers.models.llama.modeling_llama",
    "transformers.models.vit.modeling_vit",
)
"""What every run imports, most of it when it is first used."""


class ForkedPython:
    """A process of `python -m MODULE ARGUMENTS`, forked off here where all is imported already.

    It has what the tests and `encoder_bench.sweep.local` use of `subprocess.Popen`. Nothing else
    differs: it is killed, waited for and locked out like any other process.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdout: IO[bytes] | int = subprocess.DEVNULL,
        stderr: IO[bytes] | int = subprocess.DEVNULL,
        start_new_session: bool = False,
    ) -> None:
        assert command[:2] == [sys.executable, "-m"], command
        for name in _NEEDED:
            importlib.import_module(name)
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        try:
            if start_new_session:
                os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null if isinstance(stdout, int) else stdout.fileno(), 1)
            shared = stderr == subprocess.STDOUT
            os.dup2(1 if shared else null if isinstance(stderr, int) else stderr.fileno(), 2)
            os._exit(_run_module(command[2], command[3:], env))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 240.0) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("forked", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def on_two_processes(
    module: str, *arguments: str, log: Path, **environment: str
) -> tuple[int, int]:
    """Do `torchrun --nproc-per-node 2 -m MODULE ARGUMENTS`; return both exit statuses."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", module, *arguments]
    with log.open("ab") as output:
        first, second = (
            ForkedPython(
                command,
                env={**os.environ, **shared, **environment, "RANK": rank, "LOCAL_RANK": rank},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for rank in "01"
        )
    return first.wait(), second.wait()


def _run_module(name: str, arguments: Sequence[str], env: Mapping[str, str] | None) -> int:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # what this process has joined
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    sys.argv[1:] = arguments
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return _status(end)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _status(end: SystemExit) -> int:
    return end.code if isinstance(end.code, int) else int(end.code is not None)
