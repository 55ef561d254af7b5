"""The command line as a user gets it, without the seconds that a new process spends on imports."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
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
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())
