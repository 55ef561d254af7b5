"""A folder in COCO's layout as pools: no test image, whole captions, categories as classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.data.folder import open_data
from zoo.folder_pool import folder_pools


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from encoder_bench.data.scenes.build import SceneSizes, write_scenes

    root = tmp_path_factory.mktemp("data")
    write_scenes(root, SceneSizes(seed=5, train=60, val=3, test=5), QuietReporter())
    return root


def test_pools_are_cut_from_the_training_images_alone(folder: Path) -> None:
    pools, tokenizer = folder_pools(open_data(str(folder)), QuietReporter())
    assert sum(len(pool) for pool in pools.values()) == 60
    assert len(pools["train"]) > 30
    instances = json.loads((folder / "coco/annotations/instances_train2017.json").read_text())
    assert len(pools["train"].classes["categories"]) == len(instances["categories"])
    assert pools["train"].images.shape[1:] == (3, 72, 72)
    assert all(len(captions) == 5 for captions in pools["train"].captions)
    text = tokenizer.decode(pools["train"].captions[0][0], skip_special_tokens=True)
    written = (folder / "coco/annotations/captions_train2017.json").read_text()
    assert json.dumps(text) in written


def test_a_folder_with_few_images_says_so(tmp_path: Path) -> None:
    from encoder_bench.data.scenes.build import SceneSizes, write_scenes

    write_scenes(tmp_path, SceneSizes(seed=5, train=2, val=1, test=1), QuietReporter())
    with pytest.raises(DataError, match="too few to pretrain"):
        folder_pools(open_data(str(tmp_path)), QuietReporter())
