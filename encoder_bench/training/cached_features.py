"""Which features the cache holds, found without torch."""

from __future__ import annotations

import contextlib
import json

from safetensors import SafetensorError, safe_open

from encoder_bench.base.cache import CacheEntry
from encoder_bench.base.paths import cache_dir

ABOUT = "about.json"


def list_features() -> list[CacheEntry]:
    """Return every encoder's cached features, the least recently used first."""
    entries = []
    for about in cache_dir("features").glob(f"*/{ABOUT}"):
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
