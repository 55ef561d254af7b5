"""Checkpoints that their authors offer as a file of their own, outside the model hub.

What belongs here: fetching such a file, and rewriting it once as safetensors under the names of the
encoder alone. Such files are pickles: they are read with `weights_only`, which runs no code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from encoder_bench.base.errors import WeightsError
from encoder_bench.base.files import atomic_path, write_text
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.hub import is_offline
from encoder_bench.base.paths import cache_dir
from encoder_bench.encoders.checkpoint import find_file, verified
from encoder_bench.encoders.integrity import file_hash, verify_weights
from encoder_bench.encoders.loading import explained, unreachable
from encoder_bench.encoders.spec import EncoderSpec

_WRAPPERS = ("module.base_encoder.", "module.backbone.", "backbone.", "module.")
"""What training scripts put before the encoder's names; MoCo v3 keeps two encoders in a file."""
_INSIDE = ("state_dict", "model", "teacher")
"""Where a checkpoint with other contents keeps its tensors."""


def is_address(place: str) -> bool:
    """Return whether a source's place is a file on the web, not a repository of the Hub."""
    return place.startswith("https://")


def authors_file(spec: EncoderSpec, address: str, weights: Path | None) -> tuple[Path, str]:
    """Return a safetensors file with the encoder's weights, and the sha256 of what was published.

    Args:
        spec: for errors, and for the sha256 where one is pinned.
        address: the authors' own, downloaded once into the cache.
        weights: that file on disk, or the folder that holds it; or its weights as safetensors.

    Raises:
        WeightsError: unreachable, damaged, another file than the pinned one, or not tensors alone.
    """
    if weights is None:
        original = fetch_address(spec.name, address)
    else:
        original = weights / _file_name(address) if weights.is_dir() else weights
        if original.suffix == ".safetensors" or not original.is_file():
            return find_file(spec, weights)
    verify_weights(spec.name, original)
    digest = file_hash(original)
    if spec.revision not in (None, f"sha256:{digest}"):
        raise WeightsError(
            f"encoder {spec.name}: {original} has the sha256 {digest[:12]}..., the catalogue names "
            f"{spec.revision}; delete it and fetch it again"
        )
    converted = cache_dir("checkpoints", digest[:32], "model.safetensors")
    if not converted.is_file():
        _convert(spec.name, original, converted)
    verified(spec, converted)
    return converted, f"sha256:{digest}"


def fetch_address(name: str, address: str) -> Path:
    """Return the file at an address, downloaded once, resumed where an earlier try stopped.

    Raises:
        WeightsError: unreachable, or cut short.
    """
    from huggingface_hub.file_download import http_get

    target = cache_dir("downloads", hash_text(address)[:16], _file_name(address))
    if target.is_file():
        return target
    if is_offline():
        raise unreachable(name, address)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.incomplete")
    partial.touch()
    with explained(name, address), partial.open("r+b") as stream:
        # The last byte is asked for again, so that a whole file is not a range beyond its end.
        start = max(0, partial.stat().st_size - 1)
        stream.seek(start)
        stream.truncate()
        http_get(address, stream, resume_size=start, displayed_filename=target.name)
    partial.replace(target)
    return target


def _file_name(address: str) -> str:
    return address.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]


def _convert(name: str, original: Path, target: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with explained(name, str(original)):
        content = torch.load(original, map_location="cpu", weights_only=True)
    tensors = encoder_tensors(content)
    if not tensors:
        raise WeightsError(f"encoder {name}: {original} holds no tensors of an encoder")
    with atomic_path(target) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_text(target.with_name("SHA256SUMS"), f"{file_hash(target)}  {target.name}\n")


def encoder_tensors(content: Any) -> dict[str, Tensor]:
    """Return the encoder's tensors in a checkpoint, without what wraps their names.

    Args:
        content: a state dict, or a dict that holds one among other things.
    """
    for key in _INSIDE:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {k: v for k, v in dict(content).items() if isinstance(v, Tensor)}
    wrapper = next((w for w in _WRAPPERS if any(k.startswith(w) for k in tensors)), "")
    return {
        name.removeprefix(wrapper): tensor.clone().contiguous()
        for name, tensor in tensors.items()
        if name.startswith(wrapper)
    }
