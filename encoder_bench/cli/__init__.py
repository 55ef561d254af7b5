"""The command line: parse, call, print; no logic.

What belongs here: one module a command or group of commands. Heavy imports (torch, transformers,
pandas) stay inside the commands that need them, so that help is instant.
"""

from __future__ import annotations

import errno
import sys


def main() -> None:
    """Run the command line and exit; a user's mistake is one line on standard error.

    Exit status: 0 done, 1 an error that the line names, 2 wrong usage, 130 interrupted.
    """
    from encoder_bench.cli import options
    from encoder_bench.cli.app import app
    from encoder_bench.errors import EncoderBenchError

    try:
        app(prog_name="encoder-bench")
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
        _complain("interrupted; what was computed is kept, and the same command goes on from it")
        sys.exit(130)


def _complain(message: str) -> None:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
