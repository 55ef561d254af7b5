"""The cache folder; what is in it can always be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """Return a folder under `$ENCODER_BENCH_CACHE`, else `$XDG_CACHE_HOME` or `~/.cache`.

    The folder is not created.
    """
    root = os.environ.get("ENCODER_BENCH_CACHE")
    if root:
        base = Path(root).expanduser()
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "encoder-bench"
    return base.joinpath(*parts)
