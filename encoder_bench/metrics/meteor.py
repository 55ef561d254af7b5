"""METEOR 1.5, by its authors' Java program.

What belongs here: one Java process for all captions of a run, and the counts an image that the
corpus score is a function of, so that an interval can be bootstrapped without Java.

Reference: Denkowski and Lavie 2014, "Meteor Universal"; the English parameters of version 1.5.
"""

from __future__ import annotations

import atexit
import contextlib
import subprocess
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from encoder_bench.base.errors import MissingDependencyError
from encoder_bench.metrics.caption import Captions, tokenized
from encoder_bench.metrics.java import find_java, heap_mebibytes, scorer_folder

COUNTS = 23
"""Lengths (4), matches of 4 stages (16), chunks, matched words of caption and of reference."""
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
_SECONDS_FOR_A_START = 120.0
_SECONDS_A_CAPTION = 0.2


def meteor_counts(predictions: Sequence[str], references: Captions) -> NDArray[np.float64]:
    """Return `(n, 23)` counts, a row an image, against the reference that METEOR finds best.

    A caption that equals its reference counts no chunk, as METEOR's own sum over a corpus has it.

    Raises:
        MissingDependencyError: no Java, or the program fails or takes too long.
    """
    guesses, truths = tokenized(predictions, references)
    lines = [
        " ||| ".join(["SCORE", *(_plain(text) for text in truths[key]), _plain(guess[0])])
        for key, guess in guesses.items()
    ]
    rows = [[float(word) for word in line.split()] for line in _run(lines)]
    if len(rows) != len(lines) or any(len(row) != COUNTS for row in rows):
        raise MissingDependencyError("METEOR answered in a form that is not version 1.5's")
    counts = np.asarray(rows, dtype=np.float64).reshape(-1, COUNTS)
    length, reference, chunks, found, matched = counts[:, [0, 1, 20, 21, 22]].T
    counts[(length == found) & (reference == matched) & (chunks == 1), 20] = 0.0
    return counts


def meteor(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return METEOR in percent, from `(R, 23)` sums of `meteor_counts`."""
    length, reference, length_f, reference_f = sums[:, :4].T
    stages = sums[:, 4:20].reshape(-1, 4, 4)
    chunks, matches = sums[:, 20], (sums[:, 21] + sums[:, 22]) / 2
    weighted = stages * _STAGE_WEIGHTS[None, :, None]
    content, function = _DELTA, 1.0 - _DELTA
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = (content * weighted[:, :, 0] + function * weighted[:, :, 2]).sum(1) / (
            content * (length - length_f) + function * length_f
        )
        recall = (content * weighted[:, :, 1] + function * weighted[:, :, 3]).sum(1) / (
            content * (reference - reference_f) + function * reference_f
        )
        mean = 1.0 / ((1.0 - _ALPHA) / precision + _ALPHA / recall)
        penalty = _GAMMA * np.where(matches > 0, chunks / matches, 0.0) ** _BETA
    return np.asarray(100.0 * np.nan_to_num(mean * (1.0 - penalty)))


def _plain(text: str) -> str:
    """Return a caption without the separator of METEOR's protocol."""
    return text.replace("|||", "").replace("  ", " ")


def _run(lines: Sequence[str]) -> list[str]:
    """Return the program's answer to each line, from the one process that this run keeps.

    Raises:
        MissingDependencyError: no Java, or the program fails or takes too long; it is then killed.
    """
    global _program
    if _program is None or not _program.alive():
        _program = _Program()
        atexit.register(_program.stop)
    limit = _SECONDS_FOR_A_START + _SECONDS_A_CAPTION * len(lines)
    try:
        return _program.ask(lines, limit)
    except (OSError, ValueError) as error:
        _program.stop()
        raise MissingDependencyError(f"METEOR's Java program stopped: {error}") from error


class _Program:
    """METEOR in its line-by-line mode: a line in, a line out."""

    def __init__(self) -> None:
        java, _ = find_java()
        heap = f"-Xmx{heap_mebibytes(2048)}m"
        self._command = [java, heap, "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en"]
        self._process = subprocess.Popen(
            [*self._command, "-norm"],
            cwd=scorer_folder("meteor"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )

    def alive(self) -> bool:
        """Return whether it can be asked."""
        return self._process.poll() is None

    def ask(self, lines: Sequence[str], seconds: float) -> list[str]:
        """Return an answer a line; it is killed after so many seconds."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        timer = threading.Timer(seconds, self._process.kill)
        writer = threading.Thread(target=self._write, args=(lines,), daemon=True)
        timer.start()
        writer.start()
        try:
            answers = [stdout.readline() for _ in lines]
        finally:
            timer.cancel()
        if not all(answer.endswith("\n") for answer in answers):
            ended = self._process.wait()
            raise OSError(f"ended with {ended} ({' '.join(self._command[:2])})")
        writer.join()
        return [answer.rstrip("\n") for answer in answers]

    def _write(self, lines: Sequence[str]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError, ValueError):  # the reader notices that it is gone
            for line in lines:
                stdin.write(f"{line}\n")
            stdin.flush()

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


_program: _Program | None = None
"""Started once for all caption tasks of a run."""
