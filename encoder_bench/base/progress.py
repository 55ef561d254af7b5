"""What a run tells its user while it works: phases, rates, notes, warnings.

What belongs here: the reporter that every floor calls, and its three faces (Rich on a terminal,
plain lines elsewhere, silence). Nothing here decides what to report.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol


class Phase(Protocol):
    """One running phase."""

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Count `amount` units as done and show the fields (`loss="1.23"`)."""


class Reporter(Protocol):
    """Where phases, notes and warnings go."""

    def phase(
        self, name: str, total: int | None = None, unit: str = "it"
    ) -> contextlib.AbstractContextManager[Phase]:
        """Open a phase of `total` units; closing it prints how long it took."""

    def note(self, message: str) -> None:
        """Tell one line that is worth reading once."""

    def warn(self, message: str) -> None:
        """Tell one line that qualifies the result."""


class _SilentPhase:
    def advance(self, amount: int = 1, **fields: str) -> None:
        pass


class QuietReporter:
    """Says nothing but warnings, which go to standard error."""

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "it") -> Iterator[Phase]:
        """Open a phase that prints nothing."""
        yield _SilentPhase()

    def note(self, message: str) -> None:
        """Drop the note."""

    def warn(self, message: str) -> None:
        """Print the warning to standard error."""
        print(f"warning: {message}", file=sys.stderr)


class _PlainPhase:
    def __init__(self, name: str, total: int | None, unit: str, interval_seconds: float) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._interval, self._done = interval_seconds, 0
        self._start = self._last = time.monotonic()

    def advance(self, amount: int = 1, **fields: str) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last < self._interval:
            return
        self._last = now
        rate = self._done / max(now - self._start, 1e-9)
        of = f"/{self._total}" if self._total else ""
        shown = "".join(f", {key} {value}" for key, value in fields.items())
        line = f"{self._name}: {self._done}{of} {self._unit}, {rate:.3g} {self._unit}/s{shown}"
        print(line, file=sys.stderr, flush=True)


class PlainReporter(QuietReporter):
    """Plain lines to standard error, at most one every few seconds a phase; for logs."""

    def __init__(self, interval_seconds: float = 10.0) -> None:
        """Print a phase's progress at most once every `interval_seconds`."""
        self._interval = interval_seconds

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "it") -> Iterator[Phase]:
        """Open a phase; its end prints its duration."""
        start = time.monotonic()
        print(f"{name}: started", file=sys.stderr, flush=True)
        yield _PlainPhase(name, total, unit, self._interval)
        print(f"{name}: done in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)

    def note(self, message: str) -> None:
        """Print the note to standard error."""
        print(message, file=sys.stderr, flush=True)


class _RichPhase:
    def __init__(self, progress: object, task: int) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: int = 1, **fields: str) -> None:
        from rich.progress import Progress, TaskID

        assert isinstance(self._progress, Progress)
        shown = " ".join(f"{key} {value}" for key, value in fields.items())
        self._progress.update(TaskID(self._task), advance=amount, fields=shown)


class RichReporter:
    """Progress bars on a terminal, through Rich, on standard error."""

    def __init__(self) -> None:
        """Open a console on standard error, so that standard output stays the result alone."""
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "it") -> Iterator[Phase]:
        """Open a bar with count, rate, elapsed and remaining time."""
        from rich import progress as bars

        columns = (
            bars.TextColumn("[bold]{task.description}"),
            bars.BarColumn(bar_width=24),
            bars.TextColumn("{task.completed:.0f}" + (f"/{total}" if total else "") + f" {unit}"),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            bars.TextColumn("[dim]{task.fields[fields]}"),
        )
        with bars.Progress(*columns, console=self._console) as progress:
            yield _RichPhase(progress, progress.add_task(name, total=total, fields=""))

    def note(self, message: str) -> None:
        """Print the note above the bars."""
        self._console.print(message, markup=False, highlight=False)

    def warn(self, message: str) -> None:
        """Print the warning in yellow above the bars."""
        self._console.print(f"warning: {message}", style="yellow", markup=False, highlight=False)


def make_reporter(*, quiet: bool) -> Reporter:
    """Return bars on a terminal, plain lines elsewhere, or silence."""
    if quiet:
        return QuietReporter()
    return RichReporter() if sys.stderr.isatty() else PlainReporter()
