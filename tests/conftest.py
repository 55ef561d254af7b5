"""Shared by all tests: a private cache, no network, one thread, and the real slice where it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")  # tiny models; as many tests as cores run side by side


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep caches out of the user's own; `ENCODER_BENCH_TEST_CACHE` keeps them for longer.

    The workers of pytest-xdist share one, as two commands of a user do.
    """
    kept = os.environ.get("ENCODER_BENCH_TEST_CACHE")
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["ENCODER_BENCH_CACHE"] = kept or str(base / "cache")


@pytest.fixture
def without_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR is n/a; its program takes 8 s of processor time to start."""
    from encoder_bench.base.errors import MissingDependencyError

    def meteor_counts(*arguments: object) -> None:
        raise MissingDependencyError("not started in this test")

    monkeypatch.setattr("encoder_bench.metrics.java.meteor_counts", meteor_counts)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real data in the official layouts; tests that want it are skipped without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "real"
    folder = Path(os.environ.get("ENCODER_BENCH_REAL_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real data here; set ENCODER_BENCH_REAL_DATA to a folder that has some")
    return folder
