"""What the feature cache saves in frozen training, and how near it comes to having no encoder.

The loop runs three ways on the same samples: patch tokens from the cache, from the encoder in
every step, and ready-made in memory (the limit).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.encoders import VIT_B, write_vit
from encoder_bench.base.progress import QuietReporter
from encoder_bench.data.sample import Sample
from encoder_bench.mllm.model import MLLM
from encoder_bench.pipeline.build import build_mllm
from encoder_bench.pipeline.data import read_data
from encoder_bench.pipeline.plan import RunPlan, make_plan
from encoder_bench.training.checkpoint import TrainingSummary
from encoder_bench.training.feature_cache import open_features
from encoder_bench.training.trainer import Trainer

_DATA = "scenes:0:{images}:2:6"
_IMAGES_PER_STEP = 8
_SAMPLES_PER_IMAGE = 5
_WAYS = ("cached", "uncached", "limit")


def run_bench(
    *, images: int = 32, steps: int = 4, repeats: int = 5, device: str = "cpu"
) -> dict[str, Any]:
    """Measure frozen training with a tiny encoder and with a ViT-B/16, and return JSON.

    `speed_up` is cached over uncached; a `share_of_limit` of 1 is as fast as with no encoder at
    all; `waited_share` is of the training's time, spent waiting for batches.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        vit = write_vit(folder / "vit-b16", VIT_B)
        encoders = {"tiny-deit": "tiny-deit", "vit-b16, random weights, 224 px": vit}
        return {
            "settings": {
                "adapter": "quick, one stage, float32",
                "images": images,
                "images_per_step": _IMAGES_PER_STEP,
                "samples_per_image": _SAMPLES_PER_IMAGE,
                "steps": steps,
                "repeats": repeats,
                "device": device,
                "threads": torch.get_num_threads(),
            }
        } | {
            name: _measure(_plan(encoder, images, steps, device), folder, repeats)
            for name, encoder in encoders.items()
        }


def _plan(encoder: str, images: int, steps: int, device: str) -> RunPlan:
    """Return the second stage of `quick` alone: projector and LLM train, the encoder does not."""
    plan = make_plan(
        encoder=encoder,
        visual_tokens=64,
        projector="average-pool",
        steps=steps,
        data=_DATA.format(images=images),
        device=device,
        settings={"training.precision": "float32", "training.checkpoint_every": steps},
    )
    stage = plan.adapter.stages[-1].model_copy(
        update={"images_per_step": _IMAGES_PER_STEP, "samples_per_image": _SAMPLES_PER_IMAGE}
    )
    adapter = plan.adapter.model_copy(update={"stages": (stage,)})
    return replace(plan, adapter=adapter)


def _measure(plan: RunPlan, folder: Path, repeats: int) -> dict[str, float]:
    device = torch.device(plan.device)
    samples = read_data(plan, QuietReporter()).training
    mllm = build_mllm(plan).to(device)
    paths = list(dict.fromkeys(sample.image_path for sample in samples))
    store = open_features(mllm.encoder, paths, device=device, reporter=QuietReporter())
    store.fill()
    shape = (mllm.encoder.num_tokens, mllm.encoder.width)
    ways: dict[str, Mapping[Path, Tensor]] = {
        "cached": store,
        "uncached": {},
        "limit": {path: torch.randn(shape) for path in paths},
    }
    summaries: dict[str, list[TrainingSummary]] = {way: [] for way in _WAYS}
    for _ in range(repeats + 1):
        for way in _WAYS:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                summaries[way].append(_train(plan, mllm, samples, ways[way], Path(place), device))
    counted = {way: found[1:] for way, found in summaries.items()}
    seconds = {way: statistics.median(s.seconds for s in found) for way, found in counted.items()}
    waited = {
        way: statistics.median(s.waited_seconds / s.seconds for s in found)
        for way, found in counted.items()
    }
    return {
        **{f"{way}_seconds": spent for way, spent in seconds.items()},
        "speed_up": seconds["uncached"] / seconds["cached"],
        "share_of_limit": seconds["limit"] / seconds["cached"],
        "waited_share": waited["cached"],
        "waited_share_uncached": waited["uncached"],
    }


def _train(
    plan: RunPlan,
    mllm: MLLM,
    samples: Sequence[Sample],
    features: Mapping[Path, Tensor],
    folder: Path,
    device: torch.device,
) -> TrainingSummary:
    return Trainer(
        mllm,
        samples,
        plan.adapter,
        plan.training_recipes,
        folder=folder,
        seed=0,
        reporter=QuietReporter(),
        device=device,
        features=features,
    ).train()
