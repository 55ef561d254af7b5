"""Pretraining one encoder: objective, run, held-out measures, card, the folder that ships."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from encoder_bench.base.hardware import hardware_facts
from encoder_bench.base.progress import Reporter
from zoo.architecture import SUPERVISION, ObjectiveName, build_objective
from zoo.card import ship
from zoo.loop import Run, train
from zoo.objective import Objective, ObjectiveLoss
from zoo.pool import ImagePool
from zoo.probe import measure, prior
from zoo.schedule import Budget
from zoo.views import MEAN, STD


def pretrain_encoder(
    name: ObjectiveName,
    budget: Budget,
    *,
    train_pool: ImagePool,
    probe_pool: ImagePool,
    test_pool: ImagePool,
    tokenizer: Any,
    output: Path,
    work: Path,
    reporter: Reporter,
    seed: int = 0,
    device: torch.device | None = None,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Pretrain one encoder, measure it, ship it to `output` and return its card; resumes.

    Probes learn from `probe_pool` and are measured on `test_pool`. The checkpoint
    is in `work`; with `stop_after` it is written at that step, and nothing ships.
    """
    fresh = partial(
        build_objective,
        name,
        classes=train_pool.labels.shape[1],
        vocabulary=len(tokenizer),
        eos=tokenizer.eos_token_id,
        seed=seed,
    )
    objective = fresh()
    budget = replace(budget, learning_rate=objective.learning_rate)
    device = device or torch.device("cpu")
    objective.to(device)
    if device.type == "cuda":
        _fuse_attention(objective)
    run = _run(name, objective, budget, train_pool.to(device), seed, device)
    curve = train(run, budget, folder=work, reporter=reporter, stop_after=stop_after)
    if stop_after is not None and stop_after < budget.steps:
        return {}
    probe_pool, test_pool = probe_pool.to(device), test_pool.to(device)
    scores = measure(objective.eval().shipped().to(device), probe_pool, test_pool)
    untrained = measure(fresh().eval().shipped().to(device), probe_pool, test_pool)
    objective.to("cpu")
    reporter.note(f"{name}: held-out {scores[-2]}, with untrained weights {untrained[-2]}")
    card = {
        **_facts(name, objective, budget, train_pool, seed, device),
        "held_out": scores,
        "held_out_untrained": untrained,
        "held_out_prior": prior(test_pool),
        "probe_images": len(probe_pool),
        "test_images": len(test_pool),
        "loss_curve": curve,
    }
    card["weights_sha256"] = ship(
        objective.shipped(), output, card=card, companions=(_processor(train_pool),)
    )
    return card


def _facts(
    name: ObjectiveName,
    objective: Objective,
    budget: Budget,
    pool: ImagePool,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Return what a card says of an encoder before anything is measured."""
    return {
        "name": f"tiny-{name}",
        "class": type(objective.shipped()).__name__,
        "objective": name,
        "supervision": SUPERVISION[name],
        "description": inspect.getdoc(type(objective)),
        "data": pool.description,
        "classes": pool.classes if name == "deit" else None,
        "budget": budget.as_json(),
        "augmentation": objective.augmentation,
        "device": hardware_facts(device).get("accelerator") or "CPU",
        "precision": "bfloat16 autocast, float32 weights; shipped as float16",
        "seed": seed,
    }


def _fuse_attention(objective: Objective) -> None:
    """Let PyTorch's fused kernels compute attention: faster on a GPU, slower on a CPU."""
    from transformers import PreTrainedModel

    for module in objective.modules():
        if isinstance(module, PreTrainedModel):
            module.set_attn_implementation("sdpa")


def _run(
    name: str,
    objective: Objective,
    budget: Budget,
    pool: ImagePool,
    seed: int,
    device: torch.device,
) -> Run:
    def step_loss(_: int, generator: torch.Generator) -> ObjectiveLoss:
        batch = pool.batch(budget.images_per_step, generator)
        with torch.autocast(device.type, torch.bfloat16):
            loss: ObjectiveLoss = objective(batch, generator)
        return loss

    return Run(
        name=f"tiny-{name}",
        module=objective,
        step_loss=step_loss,
        after_step=objective.after_step,
        generator=torch.Generator().manual_seed(seed),
        identity={
            "objective": name,
            "budget": budget.as_json(),
            "seed": seed,
            "data": pool.description,
        },
    )


def _processor(pool: ImagePool) -> Any:
    from transformers import ViTImageProcessor

    height, width = pool.images.shape[-2:]
    return ViTImageProcessor(
        do_resize=True,
        size={"height": height, "width": width},
        resample=3,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
