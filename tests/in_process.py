"""The command line as a user gets it, without the seconds that a new process spends on imports."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
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
    "torch._dynamo",
    "torchvision",
    "transformers.models.llama.modeling_llama",
    "transformers.models.vit.modeling_vit",
)
"""What every run imports, most of it when it is first used."""


_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(list(_NEEDED))


class ForkedPython:
    """A process of `python -m MODULE ARGUMENTS`, forked off one that has imported all already.

    That one is a server that computes nothing, since autograd's threads do not survive a fork. It
    has what the tests and `encoder_bench.sweep.launch` use of `subprocess.Popen`; the process is
    killed, waited for and locked out like any other.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdout: IO[bytes] | int = subprocess.DEVNULL,
        stderr: int = subprocess.STDOUT,
        start_new_session: bool = False,
    ) -> None:
        assert command[:2] == [sys.executable, "-m"], command
        assert stderr == subprocess.STDOUT
        log = os.devnull if isinstance(stdout, int) else stdout.name
        inside = multiprocessing.parent_process() is not None  # a sweep's own worker
        context = multiprocessing.get_context("fork") if inside else _SERVER
        self._process = context.Process(
            target=_run_module,
            args=(command[2], command[3:], dict(env or os.environ), log, start_new_session),
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float = 240.0) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("forked", timeout)
        return self.returncode

    def kill(self) -> None:
        self._process.kill()


def free_port() -> str:
    """Return a port that no process listens on; some launchers do not choose one themselves."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def on_two_processes(
    module: str, *arguments: str, log: Path, **environment: str
) -> tuple[int, int]:
    """Do `torchrun --nproc-per-node 2 -m MODULE ARGUMENTS`; return both exit statuses."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
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


def _run_module(
    name: str, arguments: Sequence[str], env: Mapping[str, str], log: str, new_session: bool
) -> None:
    from encoder_bench.sweep import launch

    if new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(env)
    sys.argv[1:] = arguments
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    launch.subprocess = SimpleNamespace(Popen=ForkedPython, STDOUT=subprocess.STDOUT)
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _status(end: SystemExit) -> int:
    return end.code if isinstance(end.code, int) else int(end.code is not None)
