"""A folder of captioned images in COCO's layout as pools for pretraining.

Test images are never read: pools are cut from the training split, which `data/folder.py` keeps free
of every image that a test uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageOps

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.progress import Reporter
from encoder_bench.data.folder import DataFolder
from encoder_bench.data.images import load_image
from encoder_bench.data.readers.captions import read_instances
from encoder_bench.data.sample import Sample
from zoo.architecture import CAPTION_TOKENS, IMAGE_SIDE
from zoo.pool import ImagePool, caption_ids, stack_images
from zoo.tokenizer import build_tokenizer, words_of

MAX_VOCABULARY = 8000
_SHARES = {"train": range(8), "probe": range(8, 9), "held-out": range(9, 10)}


def folder_pools(data: DataFolder, reporter: Reporter) -> tuple[dict[str, ImagePool], Any]:
    """Return the pools `train`, `probe` and `held-out` of a folder, and its captions' tokenizer.

    A hash of the image id puts eight images of ten into training and one into each other pool.
    Classes are the categories of the instances file, 1 where the image holds one or more.

    Raises:
        DataError: files are missing or malformed, or too few images for three pools.
    """
    samples = data.samples("captioning", reader="coco-captions", source="captions", split="train")
    images = list({sample.image_id: sample for sample in samples}.values())
    words = words_of(caption for sample in images for caption in sample.references)
    tokenizer = build_tokenizer(words[:MAX_VOCABULARY])
    instances = read_instances(data.files.require("coco", "instances_train2017.json"))
    files = data.files
    counts = {instances.image(files, n)[0]: found for n, found in instances.counts.items()}
    pools = {}
    for name, share in _SHARES.items():
        chosen = [s for s in images if int(hash_text(str(s.image_id))[:8], 16) % 10 in share]
        if len(chosen) < 2:
            raise DataError(
                f"{data.root}: {len(images)} captioned training images are too few to pretrain on; "
                "give at least a hundred"
            )
        labels = [
            _presence(counts.get(s.image_id, Counter()), instances.categories) for s in chosen
        ]
        pools[name] = _pool(name, chosen, labels, instances.categories, data, tokenizer, reporter)
    return pools, tokenizer


def _pool(
    name: str,
    samples: Sequence[Sample],
    labels: list[list[int]],
    classes: tuple[str, ...],
    data: DataFolder,
    tokenizer: Any,
    reporter: Reporter,
) -> ImagePool:
    images = []
    with reporter.phase(f"reading {name} images", len(samples), "images") as phase:
        for sample in samples:
            images.append(_square(load_image(sample.image_path)))
            phase.advance()
    captions = (
        tuple(caption_ids(tokenizer, text, length=CAPTION_TOKENS) for text in sample.references)
        for sample in samples
    )
    return ImagePool(
        images=stack_images(images),
        captions=tuple(captions),
        labels=torch.tensor(labels, dtype=torch.float32),
        classes={"categories": classes},
        description={
            "kind": data.name,
            "fingerprint": data.fingerprint(),
            "pool": name,
            "images": len(samples),
            "resized": f"shorter side to {IMAGE_SIDE} px, centre crop, bicubic",
        },
    )


def _square(image: Image.Image) -> Image.Image:
    return ImageOps.fit(image, (IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)


def _presence(counts: Counter[str], classes: Sequence[str]) -> list[int]:
    return [int(counts[name] > 0) for name in classes]
