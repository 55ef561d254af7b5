"""The command line: parse, call, print; no logic.

Heavy imports (torch, transformers, pandas) stay inside the commands, so that help is instant.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Run the `encoder-bench` command line and exit."""
    from encoder_bench.cli.app import app

    run_app(app, "encoder-bench")


def run_app(app: Callable[..., Any], name: str) -> None:
    """Run a Typer app and exit; a user's mistake is one line on standard error.

    Exit status: 0 done, 1 an error that the line names, 2 wrong usage, 130 interrupted.
    """
    from encoder_bench.base.errors import EncoderBenchError
    from encoder_bench.cli import options

    try:
        app(prog_name=name)
    except EncoderBenchError as error:
        if options.debug:
            raise
        _complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if options.debug or error.errno != errno.ENOSPC:
            raise
        _complain(f"no space left on the disk ({error.filename}); free some and run it again")
        sys.exit(1)
    except KeyboardInterrupt:
        if options.debug:
            raise
        _complain("interrupted; what was computed is kept, and the same command resumes from it")
        sys.exit(130)


def _complain(message: str) -> None:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
