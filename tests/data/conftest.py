"""A small drawn data set, made once, and copies of it that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from encoder_bench.base.progress import QuietReporter
from encoder_bench.data.scenes.build import SceneSizes, write_scenes


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    write_scenes(root, SceneSizes(seed=3, train=30, val=5, test=20), QuietReporter())
    return root


@pytest.fixture
def damaged(drawn: Path, tmp_path: Path) -> Path:
    root = tmp_path / "data"
    shutil.copytree(drawn, root)
    return root
