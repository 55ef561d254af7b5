"""Errors that a user can cause and fix; each is a single clear line, printed without traceback."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class EncoderBenchError(Exception):
    """Base of every error that is printed as one line naming the file, row or flag at fault."""


class RecipeError(EncoderBenchError):
    """A recipe file or a flag that overrides one of its keys is wrong."""


class DataError(EncoderBenchError):
    """A data file, row or image is missing, malformed or unsafe."""


class NoTrainSplitError(DataError):
    """Training samples are wanted of a data set that is for testing only."""


class WeightsError(EncoderBenchError):
    """Checkpoint files are missing, unreachable, tampered with, or do not fit the architecture."""


class TrainingError(EncoderBenchError):
    """Training cannot start or go on: nothing to train, non-finite loss, foreign checkpoint."""


class ProofError(TrainingError):
    """A frozen part changed, a trained part did not, or a reloaded model disagrees with itself."""


class RecordError(EncoderBenchError):
    """A run record or predictions file is missing, half-written or edited."""


class MissingDependencyError(EncoderBenchError):
    """An optional library or program is needed; the message says how to install it."""


@contextlib.contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Let a block import packages of an optional extra of this project.

    Raises:
        MissingDependencyError: one is not installed; says how to get it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{what} needs {error.name}: pip install 'encoder-bench[{extra}]'"
        ) from error


class UnknownNameError(EncoderBenchError):
    """A name that no registry holds; the message suggests the nearest ones."""

    def __init__(self, kind: str, name: str, choices: Iterable[str], hint: str = "") -> None:
        """Say what was looked up (`kind`, in the singular); `hint` is one more sentence, last."""
        super().__init__(unknown_name_message(kind, name, choices, hint))


def unknown_name_message(kind: str, name: str, choices: Iterable[str], hint: str = "") -> str:
    """Return `unknown KIND 'NAME'; did you mean ...?`, or the whole list where nothing is near.

    >>> unknown_name_message("key", "promt", ["prompt", "metrics"])
    "unknown key 'promt'; did you mean 'prompt'?"
    """
    names = sorted(set(choices))
    same = [known for known in names if known.casefold() == name.strip().casefold()]
    near = same or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    message = f"unknown {kind} '{name}'"
    if near:
        message += "; did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    elif names:
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        message += f"; choose one of {shown}."
    return f"{message} {hint}".rstrip()
