"""Which tiny encoders' weights ship with this installation; imports no torch."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def bundled_folder(name: str) -> Path:
    """Return where the weights of a tiny encoder ship; the folder may not exist."""
    return Path(str(resources.files("encoder_bench"))) / "bundled" / "encoders" / name


def has_bundled_weights(name: str) -> bool:
    """Return whether the weights are there."""
    return (bundled_folder(name) / "model.safetensors").is_file()
