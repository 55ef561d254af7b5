"""Checkpoint files of timm and open_clip: found, fetched, verified, and read whole.

What belongs here: the one way from a local path or a Hub repository to a verified file, and the
check that a library's own loader read every parameter. Architectures are `timm.py`'s and
`open_clip.py`'s business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from encoder_bench.base.errors import WeightsError
from encoder_bench.base.hub import is_cached, is_reachable
from encoder_bench.encoders.integrity import verify_weights
from encoder_bench.encoders.loading import explained, unreachable
from encoder_bench.encoders.spec import EncoderSpec

_RANDOM_FILLS = {
    Tensor.uniform_,
    Tensor.normal_,
    Tensor.erfinv_,
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.trunc_normal_,
    nn.init.kaiming_uniform_,
    nn.init.kaiming_normal_,
    nn.init.xavier_uniform_,
    nn.init.xavier_normal_,
}
_SAFE = ("model.safetensors", "open_clip_model.safetensors")


def find_file(spec: EncoderSpec, weights: Path, names: tuple[str, ...] = _SAFE) -> tuple[Path, str]:
    """Return the verified safetensors file of `--weights`, and its sha256 as the revision.

    Raises:
        WeightsError: there is none (a pickled checkpoint is refused), or its hash is wrong.
    """
    candidates = [weights / name for name in names] if weights.is_dir() else [weights]
    for file in candidates:
        if file.suffix == ".safetensors" and file.is_file():
            return verified(spec, file)
    raise WeightsError(
        f"encoder {spec.name}: --weights {weights}: no {' or '.join(names)}; a pickled checkpoint "
        "is not read from a folder, convert it with safetensors first"
    )


def fetch_file(spec: EncoderSpec, repository: str, names: tuple[str, ...]) -> tuple[Path, str]:
    """Return the first of the named files that a Hub repository has, and the commit it is of.

    A download resumes where an earlier one stopped, shows its progress, and is compared with the
    sha256 that the Hub states.

    Args:
        spec: for errors, and for the revision where one is pinned.
        repository: Hub repository.
        names: file names, the preferred first.

    Raises:
        WeightsError: unreachable, none of the files, or damaged.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if not is_cached(repository, spec.revision) and not is_reachable(repository):
        raise unreachable(spec.name, repository)
    for name in names:
        with explained(spec.name, repository):
            try:
                path = Path(hf_hub_download(repository, name, revision=spec.revision))
            except LocalEntryNotFoundError:
                continue
            except EntryNotFoundError:
                continue
            file, _ = verified(spec, path)
            return file, spec.revision or path.parent.name
    raise WeightsError(
        f"encoder {spec.name}: {repository} has none of {', '.join(names)} that can be had here"
    )


def verified(spec: EncoderSpec, file: Path) -> tuple[Path, str]:
    """Return a file that is whole and has the hash that is known for it, and its own sha256.

    Raises:
        WeightsError: truncated, damaged or changed.
    """
    from safetensors import safe_open

    from encoder_bench.encoders.integrity import file_hash

    if file.suffix == ".safetensors":
        with explained(spec.name, str(file)), safe_open(file, framework="pt") as handle:
            handle.keys()  # a truncated file fails here, before its hash is computed
    verify_weights(spec.name, file)
    return file, f"sha256:{file_hash(file)}"


@contextlib.contextmanager
def strict_loading(
    name: str, place: str, *, heads: tuple[str, ...], only: str = ""
) -> Iterator[None]:
    """Make every `load_state_dict` of the block fail unless it reads every parameter.

    timm and open_clip load with `strict=False` in places, and what is missing stays at random
    values. As everything is read, drawing those values first is left out: it takes longer than
    the reading. The file's own tensors become the parameters, without a second copy in memory.

    Args:
        name: the encoder, for the error.
        place: the file, for the error.
        heads: beginnings of names that may be missing or unexpected.
        only: look only at names that begin so (`visual.` for a vision tower).

    Raises:
        WeightsError: names the first parameter that is missing or unexpected.
    """
    original = nn.Module.load_state_dict

    def load(module: nn.Module, state: Any, strict: bool = True, **options: Any) -> Any:
        report = original(module, state, strict=False, **{**options, "assign": True})
        check_names(name, place, report.missing_keys, report.unexpected_keys, heads, only)
        return report

    nn.Module.load_state_dict = load  # type: ignore[method-assign, assignment]
    try:
        with _NoRandomFill():
            yield
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


class _NoRandomFill(TorchFunctionMode):
    """Leave tensors as they are where they would be filled with random values."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function in _RANDOM_FILLS:
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


def check_names(
    name: str,
    place: str,
    missing: list[str],
    ignored_keys: list[str],
    heads: tuple[str, ...],
    only: str = "",
) -> None:
    """Check the names that a loader reports, but for those of heads.

    Raises:
        WeightsError: names the first parameter that is missing or unexpected.
    """
    for names, words in (
        (missing, "leaves {} parameters at random values, the first {}"),
        (ignored_keys, "holds {} parameters that the architecture does not have, the first {}"),
    ):
        wrong = sorted(
            n for n in names if n.startswith(only) and not n.removeprefix(only).startswith(heads)
        )
        if wrong:
            raise WeightsError(f"encoder {name}: {place} {words.format(len(wrong), wrong[0])}")
