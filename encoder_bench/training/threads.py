"""Threads beside training that leave its cores to it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def one_core_threads(number: int) -> ThreadPoolExecutor:
    """Return a pool of threads in each of which PyTorch computes on one core.

    On CPUs every thread that computes would otherwise have a team of OpenMP threads of its own.
    More teams than cores make training's own wait by sleeping instead of spinning, for as long as
    they exist, which doubles the time of small models.
    """
    together = threading.Barrier(number)

    def use_one_core() -> None:
        torch.get_num_threads()  # a thread's first call sets its number to the process's
        torch.set_num_threads(1)
        together.wait()  # so that each thread of the pool does it once

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(number)
    for ready in [pool.submit(use_one_core) for _ in range(number)]:
        ready.result()
    torch.set_num_threads(threads)  # of this thread and of those to come
    return pool
