"""A small training folder in LLaVA's layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from encoder_bench.base.progress import QuietReporter
from encoder_bench.data.mixture import Mixture, open_mixture

COCO, VG = "coco/train2017/000000000123.jpg", "vg/VG_100K/123.jpg"
Rows = Sequence[dict[str, Any]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path / "cache"))


def picture(seed: int) -> Image.Image:
    """Return a picture of coarse noise, unlike that of any other seed."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((48, 48), Image.Resampling.BICUBIC)


def turns(*texts: str) -> list[dict[str, str]]:
    """Return LLaVA's messages, from human and gpt by turns."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with three pictures: two of COCO's names, one of Visual Genome's."""
    names = (
        "coco/train2017/000000000123.jpg",
        "coco/train2017/000000000042.jpg",
        "vg/VG_100K/123.jpg",
    )
    for seed, name in enumerate(names):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path, quality=95)
    return tmp_path / "data"


@pytest.fixture
def opened(root: Path) -> Callable[..., Mixture]:
    """Return a function that writes rows to a LLaVA file and opens a mixture of it."""

    def make(rows: Rows, *, settings: str = "", head: str = "", **arguments: Any) -> Mixture:
        (root / "rows.json").write_text(json.dumps(rows))
        recipe = root / "mix.toml"
        recipe.write_text(
            f'description = "d"\n{head}\n[[sources]]\nname = "own"\nformat = "llava"\n'
            f'path = "rows.json"\n{settings}'
        )
        return open_mixture(str(recipe), root, QuietReporter(), **arguments)

    return make
