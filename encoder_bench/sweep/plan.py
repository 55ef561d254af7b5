"""A sweep before it starts: its cells, what they will cost, and what is done already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from encoder_bench.pipeline.estimate import RunEstimate, duration_text, estimate_run, size_text
from encoder_bench.sweep.cells import Cell, write_cell
from encoder_bench.sweep.status import CellStatus, read_status


@dataclass(frozen=True, slots=True)
class Entry:
    """A cell with its folder, its state and its estimated cost."""

    cell: Cell
    folder: Path
    status: CellStatus
    estimate: RunEstimate

    @property
    def time(self) -> str:
        """Estimated training time, or n/a."""
        return duration_text(self.estimate.seconds)

    @property
    def memory(self) -> str:
        """Estimated peak memory, or n/a."""
        return size_text(self.estimate.memory_bytes)

    @property
    def disk(self) -> str:
        """Estimated size of checkpoints and weights, or n/a."""
        return size_text(self.estimate.disk_bytes)


@dataclass(frozen=True, slots=True)
class Sweep:
    """The cells of one sweep command.

    Attributes:
        entries: all of them, in the order in which they run.
        results: the results folder.
        force: run again what is done.
    """

    entries: tuple[Entry, ...]
    results: Path
    force: bool

    @classmethod
    def planned(cls, cells: Sequence[Cell], results: Path, *, force: bool = False) -> Sweep:
        """Plan every cell before any starts, so that a typing error costs nothing.

        Raises:
            RecipeError: a recipe or a setting is wrong.
            UnknownNameError: no such encoder, recipe, projector or task.
        """
        plans = [cell.plan(results) for cell in cells]
        entries = []
        for cell, plan in zip(cells, plans, strict=True):
            folder = cell.folder(results)
            entries.append(Entry(cell, folder, read_status(folder, results), estimate_run(plan)))
        return cls(tuple(entries), results, force)

    def write(self) -> None:
        """Write down what the cells are, so that another process can do them and show them."""
        for entry in self.entries:
            write_cell(entry.cell, self.results)

    @property
    def missing(self) -> list[Path]:
        """Folders of the cells to do: all that are neither done nor running elsewhere."""
        return [
            entry.folder
            for entry in self.entries
            if entry.status.state != "running" and (self.force or entry.status.state != "done")
        ]

    @property
    def largest_memory(self) -> int | None:
        """Bytes that the largest cell is estimated to need; None where none is known."""
        known = [e.estimate.memory_bytes for e in self.entries if e.estimate.memory_bytes]
        return max(known) if known else None

    def summary(self) -> str:
        """Return one line: how many cells, how many to do, and their time one after another."""
        missing = set(self.missing)
        seconds = [e.estimate.seconds for e in self.entries if e.folder in missing]
        known = [value for value in seconds if value is not None]
        total = duration_text(sum(known)) if len(known) == len(seconds) else "n/a"
        running = sum(entry.status.state == "running" for entry in self.entries)
        elsewhere = f", {running} running elsewhere" if running else ""
        return (
            f"{len(self.entries)} cells, {len(missing)} to do{elsewhere}; training one after "
            f"another {total} (estimated, to a factor of about three)"
        )

    def name_of(self, folder: Path) -> str:
        """Return a cell's name for people."""
        return next(entry.cell.name for entry in self.entries if entry.folder == folder)

    def status_of(self, folder: Path) -> CellStatus:
        """Return how a cell stands now."""
        return read_status(folder, self.results)
