"""Whether a model repository is on this machine or can be reached; asked before anything waits."""

from __future__ import annotations

import os

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_SECONDS = 3.0
_FILES = (
    "config.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def is_cached(repository: str, revision: str | None = None) -> bool:
    """Return whether a configuration or weights of the repository are in the local Hub cache."""
    from huggingface_hub import try_to_load_from_cache

    return any(
        isinstance(try_to_load_from_cache(repository, name, revision=revision), str)
        for name in _FILES
    )


def is_reachable(repository: str) -> bool:
    """Ask the Hub once, for at most three seconds, whether it has the repository.

    False at once where `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` is set.
    """
    if any(os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON") for name in _OFFLINE):
        return False
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repository, timeout=_SECONDS)
    except Exception:  # any failure means the same here: it cannot be had
        return False
    return True
