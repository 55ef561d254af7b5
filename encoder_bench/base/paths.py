"""Where results go by default, and where the cache is."""

import os
from pathlib import Path

from encoder_bench.base.errors import EncoderBenchError

RESULTS = Path("runs")
"""The results folder where none is given."""


def cache_dir(*parts: str) -> Path:
    """Return a folder under `$ENCODER_BENCH_CACHE`, else `$XDG_CACHE_HOME` or `~/.cache`.

    The folder is not created.

    Raises:
        EncoderBenchError: none of the two is set and the user has no home.
    """
    root = os.environ.get("ENCODER_BENCH_CACHE")
    try:
        if root:
            return Path(root).expanduser().joinpath(*parts)
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # neither HOME nor a passwd entry
        raise EncoderBenchError(
            "no home folder is known: set HOME, or ENCODER_BENCH_CACHE to a folder for caches"
        ) from None
    return caches.joinpath("encoder-bench", *parts)
