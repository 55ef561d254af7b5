"""What a run prints while it works: phases, rates, notes, warnings; all on standard error."""

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
        """Print a line worth reading once."""

    def warn(self, message: str) -> None:
        """Print a line that qualifies the result."""


class QuietReporter:
    """Prints warnings only; as a phase it counts nothing."""

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "it") -> Iterator[Phase]:
        """Open a phase that prints nothing."""
        yield self

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Print nothing."""

    def note(self, message: str) -> None:
        """Drop the note."""

    def warn(self, message: str) -> None:
        """Print the warning."""
        self._print(f"warning: {message}")

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class PlainReporter(QuietReporter):
    """Plain lines, at most one every `interval_seconds` per phase; for logs."""

    def __init__(self, interval_seconds: float = 10.0) -> None:
        """Set the interval."""
        self._interval = interval_seconds

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "it") -> Iterator[Phase]:
        """Open a phase; its end prints its duration."""
        phase = _PlainPhase(self, name, total, unit, self._interval)
        self._print(f"{name}: started")
        yield phase
        self._print(f"{name}: done in {time.monotonic() - phase.start:.1f} s")

    def note(self, message: str) -> None:
        """Print the note."""
        self._print(message)


class _PlainPhase:
    def __init__(
        self, reporter: PlainReporter, name: str, total: int | None, unit: str, interval: float
    ) -> None:
        self._reporter, self._name, self._unit, self._interval = reporter, name, unit, interval
        self._of = f"/{total}" if total else ""
        self._done, self.start = 0, time.monotonic()
        self._last = self.start

    def advance(self, amount: int = 1, **fields: str) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last < self._interval:
            return
        self._last = now
        rate = self._done / max(now - self.start, 1e-9)
        shown = "".join(f", {key} {value}" for key, value in fields.items())
        count = f"{self._done}{self._of} {self._unit}"
        self._reporter.note(f"{self._name}: {count}, {rate:.3g} {self._unit}/s{shown}")


class RichReporter:
    """Progress bars through Rich, on a terminal or in a notebook; a finished bar becomes a line."""

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
            bars.TextColumn("elapsed,"),
            bars.TimeRemainingColumn(),
            bars.TextColumn("left [dim]{task.fields[fields]}"),
        )
        start = time.monotonic()
        with bars.Progress(*columns, console=self._console, transient=True) as progress:
            bar = _RichPhase(progress, progress.add_task(name, total=total, fields=""))
            yield bar
        seconds = time.monotonic() - start
        self.note(f"{name}: {bar.done} {unit} in {seconds:.1f} s {bar.shown}".rstrip())

    def note(self, message: str) -> None:
        """Print the note above the bars."""
        self._console.print(message, markup=False, highlight=False)

    def warn(self, message: str) -> None:
        """Print the warning in yellow above the bars."""
        self._console.print(f"warning: {message}", style="yellow", markup=False, highlight=False)


class _RichPhase:
    def __init__(self, progress: object, task: int) -> None:
        self._progress, self._task, self.done, self.shown = progress, task, 0, ""

    def advance(self, amount: int = 1, **fields: str) -> None:
        from rich.progress import Progress, TaskID

        assert isinstance(self._progress, Progress)
        self.done += amount
        self.shown = " ".join(f"{key} {value}" for key, value in fields.items())
        self._progress.update(TaskID(self._task), advance=amount, fields=self.shown)


def make_reporter(*, quiet: bool) -> Reporter:
    """Return bars on a terminal or in a notebook, plain lines elsewhere, or silence."""
    if quiet:
        return QuietReporter()
    if "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty()):
        return RichReporter()
    return PlainReporter()
