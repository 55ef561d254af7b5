"""Timing several ways to do one thing, fairly on a machine that other work shares."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class Times:
    """What the repeats of one way took, in seconds, in the order of the rounds.

    Attributes:
        wall: by the clock.
        cpu: of all threads of this process, which other work on the machine hardly changes.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def rounds(variants: Sequence[Callable[[], object]], repeats: int) -> list[Times]:
    """Return each variant's times; every round runs all, in turn from first and from last.

    Args:
        variants: the ways to do it.
        repeats: rounds that count, after one that does not.
    """
    times = [Times() for _ in variants]
    for number in range(repeats + 1):
        for index in range(len(variants))[:: 1 if number % 2 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            variants[index]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[index].wall.append(time.perf_counter() - wall)
                times[index].cpu.append(time.process_time() - cpu)
    return times


def medians(variants: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return each variant's median seconds by the clock; see `rounds`."""
    return [statistics.median(times.wall) for times in rounds(variants, repeats)]


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the median over rounds of first / second: a slow round slows both of its parts."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))
