from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from encoder_bench.encoders.registry import load_encoder
from encoder_bench.mllm.attention import training_kernel
from encoder_bench.mllm.packing import pack
from encoder_bench.training.batch_encoder import BatchEncoder, one_core_threads
from tests.mllm.models import make_batch, small_language
from tests.mllm.test_packing import DIALOGUES

CPU = torch.device("cpu")


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


def test_an_encoder_beside_training_keeps_its_attention_kernel() -> None:
    """Torch's choice of kernel is the process's: training's must not reach the frozen encoder."""
    encoder = load_encoder("tiny-deit").eval().requires_grad_(False)
    beside = BatchEncoder(encoder, CPU, lambda digest: False)
    generator = torch.Generator().manual_seed(0)
    pixels = list(torch.rand(8, 3, *encoder.resolution, generator=generator))
    expected = torch.stack(beside.encode(pixels))
    language = small_language()
    rows = pack(make_batch(language, DIALOGUES, shared_prefix=True), language, visual_tokens=16)
    pool = ThreadPoolExecutor(1)
    with torch.autocast("cpu", torch.bfloat16), training_kernel(rows, language):
        found = pool.submit(beside.encode, pixels)
        time.sleep(0.3)
        assert not found.done()
    assert torch.equal(torch.stack(found.result()), expected)
    beside.close()
    pool.shutdown()
