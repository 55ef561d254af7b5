"""CoreNLP's own tokenizer, by its Java program: what `ptb.py` is checked with.

What belongs here: one Java process for all captions, and the comparison. Scores never depend on it.

Reference: coco-caption's `ptbtokenizer.py`, CoreNLP 3.4.1.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from encoder_bench.base.errors import MissingDependencyError
from encoder_bench.metrics.java import find_java, heap_mebibytes, scorer_folder
from encoder_bench.metrics.ptb import PUNCTUATION, ptb_tokenize

_JAR = "stanford-corenlp-3.4.1.jar"
_SECONDS_FOR_A_START = 120.0
_SECONDS_A_CAPTION = 0.05


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


def java_tokenize(captions: Sequence[str]) -> list[str]:
    """Return each caption's tokens as the official caption evaluation has them.

    The no-break space that CoreNLP puts into a telephone number or a fraction is a space here.

    Raises:
        MissingDependencyError: no Java, or the program fails or takes too long.
    """
    java, _ = find_java()
    lines = [" ".join(text.splitlines()) for text in captions]
    command = [
        *(java, f"-Xmx{heap_mebibytes(2048)}m", "-cp", str(scorer_folder("tokenizer") / _JAR)),
        *("edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"),
    ]
    limit = _SECONDS_FOR_A_START + _SECONDS_A_CAPTION * len(lines)
    try:
        ended = subprocess.run(
            command, input="".join(f"{line}\n" for line in lines), capture_output=True, text=True,
            encoding="utf-8", timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MissingDependencyError(f"CoreNLP's tokenizer took more than {limit:.0f} s") from error
    found = ended.stdout.split("\n")[: len(lines)]
    if ended.returncode or len(found) != len(lines):
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise MissingDependencyError(f"CoreNLP's tokenizer failed: {last}")
    return [" ".join(token for token in line.split() if token not in PUNCTUATION) for line in found]


def check_tokens(captions: Sequence[str]) -> JavaCheck:
    """Compare both tokenizers on every different caption.

    Raises:
        MissingDependencyError: as `java_tokenize`.
    """
    texts = list(dict.fromkeys(captions))
    pairs = zip(texts, java_tokenize(texts), strict=True)
    return JavaCheck(len(texts), tuple(text for text, java in pairs if ptb_tokenize(text) != java))
