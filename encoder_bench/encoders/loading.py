"""What every source has in common when weights are read: clear errors, and quiet libraries."""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Iterator

from encoder_bench.base.errors import EncoderBenchError, WeightsError

_UNREACHABLE = ("LocalEntryNotFound", "OfflineMode", "ConnectError", "ConnectionError", "Timeout")


@contextlib.contextmanager
def explained(name: str, place: str) -> Iterator[None]:
    """Turn a library's failure to read an encoder into one line.

    Raises:
        WeightsError: with what to pass instead where the Hub could not be reached.
    """
    from safetensors import SafetensorError

    try:
        yield
    except EncoderBenchError:
        raise
    except SafetensorError as error:
        raise WeightsError(
            f"encoder {name}: the weights in {place} are truncated or damaged ({error}); "
            "fetch them again"
        ) from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"encoder {name}: {place} is a pickle that holds more than weights, or is damaged; it "
            "is not read"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        kinds = {type(e).__name__ for e in _chain(error)}
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if any(word in kind for kind in kinds for word in _UNREACHABLE) or "offline" in first:
            raise unreachable(name, place) from error
        if "custom code" in first:
            raise WeightsError(
                f"encoder {name}: {place} has Python code of its own, which runs only if you pass "
                "--trust-remote-code; read it first"
            ) from error
        raise WeightsError(f"encoder {name}: {place} cannot be read: {first}") from error


def unreachable(name: str, place: str) -> WeightsError:
    """Return the error for weights that are neither here nor to be had, with what to do."""
    return WeightsError(
        f"encoder {name}: {place} is not on this machine and the Hub cannot be reached; pass "
        "--weights PATH with the checkpoint's folder, or fetch it into HF_HOME where there is a "
        "network and set HF_HUB_OFFLINE=1"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
