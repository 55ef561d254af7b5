"""Whether weights on disk are what was published: full length, and the right sha256.

What belongs here: comparing files with hashes that are already known. The Hub's cache names each
large file by its sha256; a folder may carry a `SHA256SUMS`, and shipped weights a `card.json`.
A file that was verified once is not read again until its size or time of change differ.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from encoder_bench.base.errors import WeightsError
from encoder_bench.base.files import write_text
from encoder_bench.base.hashing import hash_file, hash_text
from encoder_bench.base.paths import cache_dir

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".tar")


def verify_weights(name: str, place: Path) -> str | None:
    """Compare a weights file, or all of a folder's, with the hashes that are known for them.

    Args:
        name: the encoder, for the error.
        place: a file or a folder.

    Returns:
        How many files were compared with a known hash, in words; None where no hash is known.

    Raises:
        WeightsError: a file's sha256 is another; names file and both hashes.
    """
    files = [place] if place.is_file() else sorted(p for p in place.iterdir() if p.is_file())
    compared = 0
    for file in files:
        if file.suffix not in _WEIGHTS:
            continue
        expected = _published_hash(file)
        if expected is None:
            continue
        found = file_hash(file)
        if found != expected:
            raise WeightsError(
                f"encoder {name}: {file} is damaged or was changed: its sha256 is {found[:12]}..., "
                f"published is {expected[:12]}...; delete it and fetch it again"
            )
        compared += 1
    return f"{compared} of {compared} hashes match" if compared else None


def file_hash(file: Path) -> str:
    """Return a file's sha256, from memory where size and time of change are as they were."""
    real = file.resolve()
    status = real.stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
    memory = cache_dir("hashes", f"{hash_text(str(real))[:32]}.json")
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(memory.read_text())
        if known["stamp"] == stamp:
            return str(known["sha256"])
    digest = hash_file(real)
    with contextlib.suppress(Exception):  # a cache that cannot be written costs time, no more
        write_text(memory, json.dumps({"file": str(real), "stamp": stamp, "sha256": digest}))
    return digest


def _published_hash(file: Path) -> str | None:
    return next((found for found in _known_hashes(file)), None)


def _known_hashes(file: Path) -> Iterator[str]:
    blob = file.resolve().name
    if _SHA256.fullmatch(blob):
        yield blob
    with contextlib.suppress(OSError):
        for line in (file.parent / "SHA256SUMS").read_text().splitlines():
            digest, _, listed = line.strip().partition(" ")
            if listed.strip().lstrip("*") == file.name and _SHA256.fullmatch(digest.lower()):
                yield digest.lower()
    if file.name == "model.safetensors":
        with contextlib.suppress(OSError, ValueError):
            card = json.loads((file.parent / "card.json").read_text())
            if isinstance(card, dict) and isinstance(card.get("weights_sha256"), str):
                yield card["weights_sha256"]
