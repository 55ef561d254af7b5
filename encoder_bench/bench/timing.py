"""Timing several ways to do one thing, fairly on a machine that other work shares."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def medians(variants: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """Return each variant's median seconds; repeats are interleaved, the first round dropped."""
    seconds: list[list[float]] = [[] for _ in variants]
    for _ in range(repeats + 1):
        for variant, times in zip(variants, seconds, strict=True):
            start = time.perf_counter()
            variant()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) for times in seconds]
