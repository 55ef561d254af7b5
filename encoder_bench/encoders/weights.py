"""Weights files: found, fetched, compared with the hashes that are known, and opened."""

import argparse
import contextlib
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Any

from torch import Tensor

from encoder_bench.base.errors import WeightsError
from encoder_bench.base.hashing import hash_text, known_hash
from encoder_bench.base.network import OFFLINE, is_offline
from encoder_bench.base.paths import cache_dir
from encoder_bench.encoders.catalog import EncoderSpec
from encoder_bench.encoders.loading import explained, require_here_or_reachable, unreachable

SAFETENSORS = ("model.safetensors", "open_clip_model.safetensors", "model.safetensors.index.json")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".tar", ".ckpt", ".npz")
_NUMPY = (
    *("numpy.ndarray", "numpy.dtype"),
    *(
        f"numpy.{core}.{function}"
        for core in ("core", "_core")
        for function in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ),
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INSIDE = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "averaged_model", "ema", "shadow"),
    *("teacher", "state_dict", "model_state_dict", "model", "module", "net", "encoder"),
)
"""Where a training checkpoint keeps the tensors that are evaluated: averaged ones first."""
_WRAPPERS = ("module.base_encoder.", "module.", "ema_model.", "_orig_mod.", "backbone.")
"""What training scripts put before the encoder's names; other names are then heads."""
_WRAPPERS_OF_MOST = ("model.", "net.")
_MOST = 0.8
"""Likewise, where so many names begin so: beside them are the loss's or the trainer's own."""
_WRAPPERS_OF_ALL = ("teacher.", "encoder.")
"""Likewise, where every name begins so."""


def find_file(spec: EncoderSpec, weights: Path) -> tuple[Path, str]:
    """Return the verified file of `--weights`, and its sha256 as the revision.

    A folder must hold safetensors; a pickle is read only if it is named itself.

    Raises:
        WeightsError: there is none, or its hash is wrong.
    """
    candidates = [weights / name for name in SAFETENSORS] if weights.is_dir() else [weights]
    for file in candidates:
        if file.is_file() and (file.suffix.lower() in _WEIGHTS or file.name in SAFETENSORS):
            return verified(spec, file)
    raise WeightsError(
        f"encoder {spec.name}: --weights {weights}: no {' or '.join(SAFETENSORS)}; a checkpoint "
        f"in another format ({', '.join(_WEIGHTS[1:])}) is named itself, not its folder"
    )


def fetch_file(spec: EncoderSpec, repository: str, names: tuple[str, ...]) -> tuple[Path, str]:
    """Return the first of the named files that a Hub repository has, and the commit it is of.

    A download resumes where an earlier one stopped and is compared with the Hub's sha256.

    Raises:
        WeightsError: unreachable, none of the files, or damaged.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    require_here_or_reachable(spec, repository)
    for name in names:
        with explained(spec.name, repository):
            try:
                path = Path(hf_hub_download(repository, name, revision=spec.revision))
                if path.name.endswith(".index.json"):
                    for shard in _shards(path):
                        hf_hub_download(repository, shard.name, revision=spec.revision)
            except (LocalEntryNotFoundError, EntryNotFoundError):
                continue
            return verified(spec, path)[0], spec.revision or path.parent.name
    raise WeightsError(
        f"encoder {spec.name}: {repository} has none of {', '.join(names)} that can be had here"
    )


def external_checkpoint(spec: EncoderSpec, address: str, weights: Path | None) -> tuple[Path, str]:
    """Return the checkpoint that an encoder's authors offer at an address of their own.

    It is downloaded once into the cache. `weights` is that file on disk, or the folder that holds
    it, or its weights as safetensors; the spec's revision is the sha256 where one is pinned.

    Raises:
        WeightsError: unreachable, damaged, or another file than the pinned one.
    """
    if weights is None:
        file = fetch_address(spec.name, address)
    else:
        file = weights / _file_name(address) if weights.is_dir() else weights
        if file.suffix.lower() == ".safetensors" or not file.is_file():
            return find_file(spec, weights)
    file, revision = verified(spec, file)
    if spec.revision not in (None, revision):
        raise WeightsError(
            f"encoder {spec.name}: {file} has the {revision[:19]}..., the catalogue names "
            f"{spec.revision}; delete it and fetch it again"
        )
    return file, revision


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
        raise unreachable(name, address, OFFLINE)
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


def verified(spec: EncoderSpec, file: Path) -> tuple[Path, str]:
    """Return a file that is whole and has the hash that is known for it, and its own sha256.

    Raises:
        WeightsError: truncated, damaged or changed.
    """
    from safetensors import safe_open

    if file.suffix.lower() == ".safetensors":
        with explained(spec.name, str(file)), safe_open(file, framework="pt") as handle:
            handle.keys()  # a truncated file fails here, before its hash is computed
    if file.suffix == ".json":
        for shard in _shards(file):
            verify_weights(spec.name, shard)
    verify_weights(spec.name, file)
    return file, f"sha256:{known_hash(file)}"


def verify_weights(name: str, place: Path) -> int:
    """Return how many weights files of a file or folder were compared with a known hash.

    Known are the name of a blob in the Hub's cache, a `SHA256SUMS` and a `card.json` beside it.

    Raises:
        WeightsError: a file's sha256 is another; names file and both hashes.
    """
    if not place.exists():
        raise WeightsError(f"encoder {name}: {place} is missing")
    files = [place] if place.is_file() else sorted(p for p in place.iterdir() if p.is_file())
    compared = 0
    for file in files:
        expected = next(_known_hashes(file), None) if file.suffix.lower() in _WEIGHTS else None
        if expected is None:
            continue
        found = known_hash(file)
        if found != expected:
            raise WeightsError(
                f"encoder {name}: {file} is damaged or was changed: its sha256 is {found[:12]}..., "
                f"published is {expected[:12]}...; delete it and fetch it again"
            )
        compared += 1
    return compared


def _known_hashes(file: Path) -> Iterator[str]:
    blob = file.resolve().name
    if _SHA256.fullmatch(blob):
        yield blob
    with contextlib.suppress(OSError):
        for line in (file.parent / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
            digest, _, listed = line.strip().partition(" ")
            if listed.strip().lstrip("*") == file.name and _SHA256.fullmatch(digest.lower()):
                yield digest.lower()
    if file.name == "model.safetensors":
        with contextlib.suppress(OSError, ValueError):
            card = json.loads((file.parent / "card.json").read_text(encoding="utf-8"))
            if isinstance(card, dict) and isinstance(card.get("weights_sha256"), str):
                yield card["weights_sha256"]


def read_tensors(name: str, file: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that belong to the encoder, on the file's own pages.

    Pickles are read with `weights_only`, which runs no code.

    Raises:
        WeightsError: damaged, more than weights, or no tensors.
    """
    with explained(name, str(file)):
        tensors = encoder_tensors(_content(file))
    if not tensors:
        raise WeightsError(f"encoder {name}: {file} holds no tensors of an encoder")
    return tensors


def _content(file: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    if file.suffix.lower() == ".safetensors":
        return load_file(file)
    if file.suffix == ".json":
        return {k: v for shard in _shards(file) for k, v in load_file(shard).items()}
    archive = zipfile.is_zipfile(file)
    if archive and any(n.endswith("/constants.pkl") for n in zipfile.ZipFile(file).namelist()):
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            module: Any = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
        return dict(module.state_dict())  # OpenAI's CLIP
    plain: list[Any] = [argparse.Namespace, PosixPath]  # arguments that training scripts save
    plain += [_Ignored, *((_Ignored, name) for name in _NUMPY)]
    with torch.serialization.safe_globals(plain):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=archive)


class _Ignored:
    """Stands for a NumPy number or array of a pickle (a best score, a random state): no weight.

    NumPy's own functions are not called, since a crafted pickle could let them read any memory.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _shards(index: Path) -> list[Path]:
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return [index.parent / Path(name).name for name in sorted(names)]


def encoder_tensors(content: Any) -> dict[str, Tensor]:
    """Return the encoder's tensors in a checkpoint, without what wraps their names.

    The content is a state dict, or a dict that holds one among other things.
    """
    while isinstance(content, dict) and (
        key := next((k for k in _INSIDE if _holds_tensors(content.get(k))), None)
    ):
        content = content[key]
    tensors = {str(k): v for k, v in dict(content).items() if isinstance(v, Tensor)}
    while wrapper := _wrapper(tensors):
        tensors = {
            name.removeprefix(wrapper): tensor
            for name, tensor in tensors.items()
            if name.startswith(wrapper)
        }
    return tensors


def _holds_tensors(content: Any) -> bool:
    """Return whether a dict has weights, not numbers alone, by itself or where one keeps them."""
    if not isinstance(content, dict):
        return False
    own = any(isinstance(value, Tensor) and value.ndim for value in content.values())
    return own or any(_holds_tensors(content.get(key)) for key in _INSIDE)


def _wrapper(tensors: dict[str, Tensor]) -> str | None:
    for wrapper in _WRAPPERS:
        if any(name.startswith(wrapper) for name in tensors):
            return wrapper
    for wrapper in _WRAPPERS_OF_MOST:
        if sum(name.startswith(wrapper) for name in tensors) > _MOST * len(tensors):
            return wrapper
    for wrapper in _WRAPPERS_OF_ALL:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            return wrapper
    return None
