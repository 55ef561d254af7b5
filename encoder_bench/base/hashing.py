"""Content hashes: of text, files, JSON-like values and a module's weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder_bench.base.files import write_text
from encoder_bench.base.paths import cache_dir

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

_UNSETTLED_NS = 2_000_000_000


def hash_text(*parts: str) -> str:
    """Return the sha256 of the parts, each length-prefixed so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Return the sha256 of a JSON-serialisable value, whatever the order of its keys."""
    return hash_text(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Return the hash of a file's bytes, read in pieces.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def known_hash(path: Path, algorithm: str = "sha256") -> str:
    """Return a file's hash, from the cache where size, time of change and inode are the same.

    A file that has changed within the last two seconds is read: it may change again unseen.

    Raises:
        OSError: the file cannot be read.
    """
    real = path.resolve()
    status = real.stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
    memory = cache_dir("hashes", f"{hash_text(str(real), algorithm)[:32]}.json")
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return str(known["hash"])
    digest = hash_file(real, algorithm)
    if time.time_ns() - status.st_mtime_ns > _UNSETTLED_NS:
        with contextlib.suppress(Exception):  # a cache that cannot be written costs time, no more
            write_text(memory, json.dumps({"file": str(real), "stamp": stamp, "hash": digest}))
    return digest


def hash_array(numbers: NDArray[np.int64]) -> str:
    """Return the sha256 of whole numbers, whatever the machine's order of bytes."""
    return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()


def hash_parameters(module: nn.Module) -> str:
    """Return the sha256 of a module's state dict: names, dtypes, shapes and exact bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(_bits(tensor))
    return digest.hexdigest()


def hash_tensor(tensor: Tensor) -> str:
    """Return the sha256 of a tensor's exact bits."""
    return hashlib.sha256(_bits(tensor)).hexdigest()


def _bits(tensor: Tensor) -> Any:
    import torch

    if tensor.is_meta:  # of a model without weights
        return b""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
