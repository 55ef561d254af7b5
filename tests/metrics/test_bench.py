"""The benchmark of metrics compares what is equal. Speed is not asserted."""

from __future__ import annotations

import json

from benchmarks.metrics import run_bench


def test_a_small_benchmark() -> None:
    result = run_bench(images=20, answers=40, repeats=1)
    json.dumps(result)
    cider = result["cider"]
    assert cider["times_as_fast"] == cider["pycocoevalcap_seconds"] / cider["seconds"]
    assert cider["largest_difference"] < 1e-9
    assert result["vqa"]["all_variants_seconds"] > 0
