"""What the cache holds that can be computed again, and removing what was least recently used."""

import contextlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from encoder_bench.base.paths import cache_dir

FEATURES_ABOUT = "about.json"
"""In a folder of cached features: whose they are; its time is that of their last use."""


class CacheEntry(NamedTuple):
    """One folder of the cache with its images or rows; `last_used` is in seconds since the epoch.

    `of` says what it was made from, as in `tiny-deit (exact)`.
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


def list_features() -> list[CacheEntry]:
    """Return every encoder's cached features, the least recently used first."""
    from safetensors import SafetensorError, safe_open

    entries = []
    for about in cache_dir("features").glob(f"*/{FEATURES_ABOUT}"):
        try:
            content = json.loads(about.read_text(encoding="utf-8"))
            of = f"{content['encoder']} ({content['storage']})"
        except (OSError, ValueError, KeyError, TypeError):
            of = "unknown"
        images: set[str] = set()
        size = 0
        for path in about.parent.glob("*.safetensors"):
            with contextlib.suppress(OSError, SafetensorError):
                size += path.stat().st_size
                with safe_open(path, framework="numpy") as shard:
                    images |= set(shard.keys())
        entries.append(CacheEntry(about.parent, of, len(images), size, about.stat().st_mtime))
    return sorted(entries, key=lambda entry: entry.last_used)
