"""Reading a checkpoint whole: strictly, with one copy in memory, and clear errors."""

import contextlib
import itertools
import logging
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from encoder_bench.base.errors import EncoderBenchError, WeightsError
from encoder_bench.base.network import is_cached, obstacle, refusal
from encoder_bench.encoders.catalog import EncoderSpec
from encoder_bench.encoders.encoder import TokensAndGrid

_UNREACHABLE = ("LocalEntryNotFound", "OfflineMode", "ConnectError", "ConnectionError", "Timeout")
_MAX_MODULES = 20_000
"""More than any published encoder has; a library builds as many in a few seconds."""
_GLOBAL = re.compile(r"GLOBAL (\S+)")
"""How PyTorch names a class that `weights_only` does not read."""
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


@contextlib.contextmanager
def explained(name: str, place: str) -> Iterator[None]:
    """Turn a library's failure to read an encoder into one line.

    Raises:
        WeightsError: with what to pass instead where the Hub could not be reached.
    """
    from safetensors import SafetensorError

    try:
        with bounded_building(_MAX_MODULES):
            yield
    except (EncoderBenchError, MemoryError):
        raise
    except SafetensorError as error:
        raise WeightsError(
            f"encoder {name}: the weights in {place} are truncated or damaged ({error}); "
            "fetch them again"
        ) from error
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        what = f" ({found.group(1)})" if found else ""
        raise WeightsError(
            f"encoder {name}: {place} is a pickle that holds more than weights{what}, or is "
            "damaged, and is not read. Save the weights alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # whatever a library raises on a damaged configuration
        kinds = {type(e).__name__ for e in _chain(error)}
        text = str(error).encode("utf-8", "backslashreplace").decode("utf-8").strip()
        first = text.splitlines()[0] if text else type(error).__name__
        answers = (refusal(each, place) for each in _chain(error))
        if why := next(filter(None, answers), None):
            raise unreachable(name, place, why) from error
        if any(word in kind for kind in kinds for word in _UNREACHABLE) or "offline" in first:
            raise unreachable(name, place, "the Hub cannot be reached") from error
        if "custom code" in first:
            raise WeightsError(
                f"encoder {name}: {place} has Python code of its own, which runs only if you pass "
                "--trust-remote-code; read it first"
            ) from error
        raise WeightsError(f"encoder {name}: {place} cannot be read: {first}") from error


def unreachable(name: str, place: str, why: str) -> WeightsError:
    """Return the error for weights that are neither here nor can be fetched, with what to do."""
    return WeightsError(
        f"encoder {name}: {place} is not on this machine and {why}; pass "
        "--weights PATH with the checkpoint's folder, or fetch it into HF_HOME where there is a "
        "network and set HF_HUB_OFFLINE=1"
    )


def require_here_or_reachable(spec: EncoderSpec, place: str) -> None:
    """Check that a folder or repository is on this machine, or that the Hub offers it.

    Raises:
        WeightsError: neither; says why and what to do.
    """
    here = Path(place).is_dir() or is_cached(place, spec.revision)
    if here or not (why := obstacle(place)):
        return
    error = unreachable(spec.name, place, why)
    if spec.random_weights and any(source.startswith("timm:") for source in spec.sources):
        raise WeightsError(f"{error}; {spec.name}@timm needs no files")
    raise error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def bounded_building(most: int) -> Iterator[None]:
    """Stop a library that builds layers without end, as a damaged configuration asks of it.

    Raises:
        ValueError: over `most` modules were built.
    """
    built = itertools.count(1)

    def check(*_: object) -> None:
        if next(built) > most:
            raise ValueError(
                f"its configuration asks for over {most:,} modules; correct the number of layers"
            )

    hook = register_module_module_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def quiet_building() -> Iterator[None]:
    """Silence open_clip's warning that a model was built without weights, where that is meant."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' loading bar and its table of unexpected keys; they are checked here."""
    from transformers.utils import logging as library

    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


class NoRandomFill(TorchFunctionMode):
    """Builds a model without drawing the random values that its checkpoint replaces.

    Drawing them takes longer than reading the file, and their pages are never touched. Only fills
    of parameters are skipped: torch 2.15 redraws truncated normals in a temporary tensor until all
    are in bounds, and a skipped redraw might never end.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function in _RANDOM_FILLS:
            filled = args[0] if args else (kwargs or {})["tensor"]
            if isinstance(filled, nn.Parameter):
                return filled
        return function(*args, **(kwargs or {}))


def strict_loading(
    name: str,
    place: str,
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    ignored_keys: tuple[str, ...] = (),
) -> None:
    """Make a checkpoint's own tensors the module's parameters, all of them and no other.

    `name` and `place`, the encoder and its file, are for errors. Names that begin with one of
    `ignored_keys` (heads) may be missing or unexpected.

    Raises:
        WeightsError: names the first parameter that is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    for key in sorted(own.keys() & tensors.keys()):
        if own[key].shape != tensors[key].shape and not key.startswith(ignored_keys):
            raise WeightsError(
                f"encoder {name}: {place}: {key} has the shape {tuple(tensors[key].shape)}, the "
                f"architecture needs {tuple(own[key].shape)}"
            )
    fitting = {k: v for k, v in tensors.items() if k not in own or own[k].shape == v.shape}
    report = module.load_state_dict(fitting, strict=False, assign=True)
    check_names(name, place, report.missing_keys, report.unexpected_keys, ignored_keys)


def check_names(
    name: str,
    place: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    ignored_keys: tuple[str, ...],
) -> None:
    """Check the names of parameters that a library reports, but for those of heads.

    Raises:
        WeightsError: names the first parameter that is missing or unexpected.
    """
    for names, words in (
        (missing, "leaves {} parameters at random values, the first {}"),
        (unexpected, "holds {} parameters that the architecture does not have, the first {}"),
    ):
        wrong = sorted(n for n in names if not n.startswith(ignored_keys))
        if wrong:
            raise WeightsError(f"encoder {name}: {place} {words.format(len(wrong), wrong[0])}")


def notes_on_differences(
    spec: EncoderSpec, place: Path | None, other: Sequence[str]
) -> tuple[str, ...]:
    """Return a note on the keys that a checkpoint's own configuration sets otherwise, if any."""
    line = f"encoder {spec.name}: {place} states another {', '.join(other)} than the name"
    return (f"{line}; the checkpoint is followed",) if other else ()


def token_shape(
    backbone: nn.Module, tokens: Callable[[Tensor], TokensAndGrid], resolution: tuple[int, int]
) -> tuple[int, tuple[int, int]]:
    """Return the width of a backbone's patch tokens and their grid, rows first.

    The forward pass runs on the meta device, where nothing is calculated; a backbone that cannot
    do so (a tensor of its own kept outside its buffers) is run once for real. `tokens` runs it,
    from `(1, 3, H, W)` pixels to `(1, N, D)` patch tokens and their grid.
    """
    first = next(backbone.parameters())
    state = {
        f"backbone.{name}": tensor.to("meta")
        for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers())
    }
    with torch.no_grad():
        pixels = torch.zeros(1, 3, *resolution, dtype=first.dtype, device="meta")
        try:
            output, grid = torch.func.functional_call(_Runner(backbone, tokens), state, (pixels,))
        except (RuntimeError, NotImplementedError):
            output, grid = tokens(torch.zeros_like(pixels, device=first.device))
    return int(output.shape[-1]), grid


class _Runner(nn.Module):
    """A module whose forward is `tokens`, so that its parameters can be replaced for one call."""

    def __init__(self, backbone: nn.Module, tokens: Callable[[Tensor], TokensAndGrid]) -> None:
        super().__init__()
        self.backbone = backbone
        self._tokens = tokens

    def forward(self, pixels: Tensor) -> TokensAndGrid:
        return self._tokens(pixels)
