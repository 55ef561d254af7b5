"""What the cache holds: features and indexes, which can be computed again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class CacheEntry(NamedTuple):
    """One folder of the cache.

    Attributes:
        folder: its path.
        of: what it was made from, as in `tiny-deit (exact)`.
        items: images or rows.
        size_bytes: on disk.
        last_used: in seconds since the epoch.
    """

    folder: Path
    of: str
    items: int
    size_bytes: int
    last_used: float


def prune(entries: Iterable[CacheEntry], max_bytes: int) -> list[CacheEntry]:
    """Remove the least recently used entries until at most `max_bytes` are left; return them."""
    left = sorted(entries, key=lambda entry: entry.last_used)
    total, removed = sum(entry.size_bytes for entry in left), []
    for entry in left:
        if total <= max_bytes:
            break
        shutil.rmtree(entry.folder, ignore_errors=True)
        total -= entry.size_bytes
        removed.append(entry)
    return removed
