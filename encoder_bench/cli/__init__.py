"""The command line: parse, call, print; no logic.

Heavy imports (torch, transformers, pandas) stay inside the commands, so that help is instant.
"""

import codecs
import errno
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

INTERRUPTED = 130
"""Exit status that Typer gives an interrupted command."""
_ASCII = str.maketrans({"±": "+/-", "−": "-", "–": "-", "·": "|", "×": "x", "→": ">", "…": "..."})


def main() -> None:
    """Run the `encoder-bench` command line and exit."""
    if sys.platform == "win32":  # sweeps need process groups and signals of POSIX
        sys.exit("error: encoder-bench runs on Linux and macOS; on Windows use WSL")
    from encoder_bench.cli.app import app

    run_app(app, "encoder-bench")


def run_app(app: Callable[..., Any], name: str) -> None:
    """Run a Typer app and exit; a user's mistake is one line on standard error.

    Exit status: 0 done, 1 an error that the line names, 2 wrong usage, `INTERRUPTED`.
    """
    from encoder_bench.base.errors import EncoderBenchError
    from encoder_bench.cli import options

    _prepare_environment()
    try:
        app([_with_home(argument) for argument in sys.argv[1:]], prog_name=name)
    except (EncoderBenchError, OSError) as error:
        if options.debug or (isinstance(error, OSError) and error.errno is None):
            raise
        if not isinstance(error, OSError):
            _complain(str(error))
        elif error.errno == errno.ENOSPC:
            _complain(f"no space left on the disk ({error.filename}); free some and run it again")
        else:
            _complain(f"{error.filename or 'input or output'}: {error.strerror}")
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _complain(
                "interrupted; what was computed is kept, and the same command resumes from it"
            )
        raise


def _prepare_environment() -> None:
    """Make up for closed standard streams, an output in ASCII, and a user without a home."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # in this order, so that each takes its own descriptor
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
    codecs.register_error("encoder-bench", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="encoder-bench")
    given = os.path.expanduser("~")  # noqa: PTH111
    if given in ("~", "/") and not os.access(given, os.W_OK):  # "/": Docker, an unknown user
        home = Path(tempfile.gettempdir()) / f"encoder-bench-{os.getuid()}"
        os.environ["HOME"] = str(home)
        print(f"warning: no home folder is known; caches go to {home}", file=sys.stderr)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_ASCII)
    return text.encode("ascii", "replace").decode("ascii"), error.end


def _with_home(argument: str) -> str:
    """Return an argument with the home folder for `~` where a path begins: `~/x`, `--data=~/x`."""
    if re.match(r"([\w-]+=)?~(/|$)", argument):
        return argument.replace("~", os.path.expanduser("~"), 1)  # noqa: PTH111
    return argument


def _complain(message: str) -> None:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
