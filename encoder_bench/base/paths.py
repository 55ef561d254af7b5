"""Where results go by default, and the cache folder, whose content can be computed again."""

from __future__ import annotations

import os
from pathlib import Path

RESULTS = Path("runs")
"""The results folder where none is given."""


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
