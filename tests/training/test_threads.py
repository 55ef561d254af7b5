from __future__ import annotations

import threading

import torch

from encoder_bench.training.threads import one_core_threads


def test_threads_of_the_pool_compute_on_one_core_and_others_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pool = one_core_threads(3)
        together = threading.Barrier(3)

        def number(_: int) -> int:
            together.wait(10)  # so that all three answer
            return torch.get_num_threads()

        assert list(pool.map(number, range(3))) == [1, 1, 1]
        assert torch.get_num_threads() == 2
        assert one_core_threads(1).submit(torch.get_num_threads).result() == 1
        found: list[int] = []
        other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert found == [2]
    finally:
        torch.set_num_threads(before)
