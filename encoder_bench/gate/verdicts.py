"""What the gate found: the shape of its verdicts, whatever was held against the baseline.

What belongs here: plain data. Finding it is the business of `regression.py` and of `gate/`,
printing it that of `regression_report.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from encoder_bench.results.compare import TaskComparison


@dataclass(frozen=True, slots=True)
class TaskVerdict:
    """One task of one run against its baseline; `failures` is empty where it passes.

    Attributes:
        task: the task, and what was done with it where it was not simply run again.
        comparison: accepted answers (A) against the present ones (B); None where there are none.
        failures: what is wrong, a line each.
    """

    task: str
    comparison: TaskComparison | None
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """One accepted run against its fresh one.

    Attributes:
        name: the run's identity in the baseline.
        accepted: run id of the accepted run; `fresh` of the one checked, None where there is none.
        failures: what is wrong with the run as a whole.
        tasks: verdicts task by task.
        notes: differences that are allowed but worth knowing (package versions, device).
    """

    name: str
    accepted: str
    fresh: str | None
    failures: tuple[str, ...]
    tasks: tuple[TaskVerdict, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures and not any(task.failures for task in self.tasks)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """All verdicts; `unknown` names fresh runs that no baseline entry is about."""

    margin: float
    runs: tuple[RunVerdict, ...]
    unknown: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every run passed and there was at least one."""
        return bool(self.runs) and all(run.passed for run in self.runs)

    @property
    def exit_code(self) -> int:
        """0 when passed, else 1."""
        return 0 if self.passed else 1


def merged(verdicts: Iterable[RunVerdict]) -> tuple[RunVerdict, ...]:
    """Return one verdict a run from several that were found about it, in order."""
    found: dict[str, RunVerdict] = {}
    for verdict in verdicts:
        known = found.get(verdict.name)
        found[verdict.name] = (
            verdict
            if known is None
            else replace(
                known,
                fresh=verdict.fresh or known.fresh,
                failures=(*known.failures, *verdict.failures),
                tasks=(*known.tasks, *verdict.tasks),
                notes=(*known.notes, *verdict.notes),
            )
        )
    return tuple(found.values())
