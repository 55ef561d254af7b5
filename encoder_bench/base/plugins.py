"""What other packages add through entry points."""

from collections.abc import Container
from importlib import metadata
from importlib.metadata import EntryPoint
from typing import TypeVar

from encoder_bench.base.errors import EncoderBenchError

T = TypeVar("T")


def plugin_entries(group: str, taken: Container[str] = ()) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; nothing is imported.

    Raises:
        EncoderBenchError: one has a name that is `taken`, or another one's.
    """
    found: dict[str, EntryPoint] = {}
    for entry in metadata.entry_points(group=group):
        _require_free(entry, entry.name, taken, found)
        found[entry.name] = entry
    return found


def plugins(group: str, kind: type[T], taken: Container[str] = ()) -> dict[str, T]:
    """Return what the entry points of a group hold, by its own `name`.

    Raises:
        EncoderBenchError: one cannot be loaded, is no `kind`, or has a name that is taken.
    """
    found: dict[str, T] = {}
    for entry in metadata.entry_points(group=group):
        thing = load_plugin(entry, kind)
        name = str(getattr(thing, "name", entry.name))
        _require_free(entry, name, taken, found)
        found[name] = thing
    return found


def load_plugin(entry: EntryPoint, kind: type[T]) -> T:
    """Return what an entry point holds.

    Raises:
        EncoderBenchError: it cannot be loaded, or is no `kind`.
    """
    try:
        thing = entry.load()
    except Exception as error:  # another package's code may raise anything
        raise EncoderBenchError(f"{_label(entry)}: cannot be loaded ({error})") from error
    if not isinstance(thing, kind):
        raise EncoderBenchError(f"{_label(entry)}: not of type {kind.__module__}.{kind.__name__}")
    return thing


def _require_free(
    entry: EntryPoint, name: str, taken: Container[str], found: Container[str]
) -> None:
    if name in taken or name in found:
        raise EncoderBenchError(f"{_label(entry)}: the name '{name}' is taken")


def _label(entry: EntryPoint) -> str:
    return f"entry point {entry.name} ({entry.value})"
