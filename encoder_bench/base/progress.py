"""What a run prints while it works: phases, rates, notes, warnings; all on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


class Phase:
    """One running phase.

    Attributes:
        done: units so far.
        fields: the last values shown (`loss 1.23`).
    """

    def __init__(self, show: Callable[[Phase], None] = lambda _: None) -> None:
        self._start = time.monotonic()
        self.done, self.fields = 0, list[str]()
        self._show = show

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Count `amount` units as done and show the fields (`loss="1.23"`)."""
        self.done += amount
        self.fields = [f"{key} {value}" for key, value in fields.items()]
        self._show(self)

    @property
    def seconds(self) -> float:
        """Time since it began."""
        return time.monotonic() - self._start


class Reporter:
    """Where phases, notes and warnings go; by itself it prints warnings only."""

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "it") -> Iterator[Phase]:
        """Open a phase of `total` units; closing it prints how long it took."""
        yield Phase()

    def note(self, message: str) -> None:
        """Print a line worth reading once."""

    def warn(self, message: str) -> None:
        """Print a line that qualifies the result."""
        print(f"warning: {message}", file=sys.stderr, flush=True)


class QuietReporter(Reporter):
    """Prints warnings only."""


class PlainReporter(Reporter):
    """Plain lines, at most one every `interval_seconds` per phase; for logs."""

    def __init__(self, interval_seconds: float = 10.0) -> None:
        self._interval = interval_seconds

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "it") -> Iterator[Phase]:
        """Open a phase; its end prints its duration."""
        shown = 0.0

        def show(phase: Phase) -> None:
            nonlocal shown
            if phase.seconds - shown < self._interval:
                return
            shown = phase.seconds
            count = f"{phase.done}/{total}" if total else str(phase.done)
            rate = f"{phase.done / max(shown, 1e-9):.3g} {unit}/s"
            self.note(f"{name}: {', '.join([f'{count} {unit}', rate, *phase.fields])}")

        self.note(f"{name}: started")
        phase = Phase(show)
        yield phase
        self.note(f"{name}: done in {phase.seconds:.1f} s")

    def note(self, message: str) -> None:
        """Print the note."""
        print(message, file=sys.stderr, flush=True)


class RichReporter(Reporter):
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
        with bars.Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(name, total=total, fields="")
            phase = Phase(
                lambda phase: progress.update(
                    task, completed=phase.done, fields=" ".join(phase.fields)
                )
            )
            yield phase
        line = f"{name}: {phase.done} {unit} in {phase.seconds:.1f} s {' '.join(phase.fields)}"
        self.note(line.rstrip())

    def note(self, message: str) -> None:
        """Print the note above the bars."""
        self._console.print(message, markup=False, emoji=False, highlight=False)

    def warn(self, message: str) -> None:
        """Print the warning in yellow above the bars."""
        self._console.print(
            f"warning: {message}", style="yellow", markup=False, emoji=False, highlight=False
        )


def make_reporter(*, quiet: bool) -> Reporter:
    """Return bars on a terminal or in a notebook, plain lines elsewhere, or silence."""
    if quiet:
        return QuietReporter()
    from rich.console import Console

    if Console().is_jupyter or (sys.stderr is not None and sys.stderr.isatty()):
        return RichReporter()
    return PlainReporter()
