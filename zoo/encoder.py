"""Pretraining one encoder: objective, run, held-out measures, card, the folder that ships."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from encoder_bench.base.progress import Reporter
from encoder_bench.inspection.probe import linear_probe_scores, nearest_neighbour_scores
from zoo.architecture import SUPERVISION, ObjectiveName, build_objective
from zoo.card import ship
from zoo.loop import Run, train
from zoo.objective import Objective, ObjectiveLoss
from zoo.pool import ImagePool
from zoo.schedule import Budget
from zoo.views import MEAN, STD, normalise

_PREFIX_TOKENS = {"deit": 2, "clip": 1, "siglip": 0, "mae": 1, "dino": 1, "dinov2": 1}
"""Class and distillation tokens before the patch tokens."""


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

    k-NN and linear probe learn from `probe_pool` and are measured on `test_pool`. The checkpoint
    is in `work`; with `stop_after` it is written at that step, and nothing ships.
    """
    objective = build_objective(
        name,
        classes=len(train_pool.classes),
        vocabulary=len(tokenizer),
        eos=tokenizer.eos_token_id,
        seed=seed,
    )
    untrained = measure(name, objective.eval().shipped(), probe_pool, test_pool)
    device = device or torch.device("cpu")
    objective.to(device)
    run = _run(name, objective, budget, train_pool, seed, device)
    curve = train(run, budget, folder=work, reporter=reporter, stop_after=stop_after)
    if stop_after is not None and stop_after < budget.steps:
        return {}
    objective.to("cpu").eval()
    scores = measure(name, objective.shipped(), probe_pool, test_pool)
    reporter.note(f"{name}: held-out {scores}, with untrained weights {untrained}")
    card = {
        "name": f"tiny-{name}",
        "class": type(objective.shipped()).__name__,
        "objective": name,
        "supervision": SUPERVISION[name],
        "description": inspect.getdoc(type(objective)),
        "data": train_pool.description,
        "classes": list(train_pool.classes) if name == "deit" else None,
        "budget": budget.as_json(),
        "augmentation": objective.augmentation,
        "precision": "bfloat16 autocast, float32 weights; shipped as float16",
        "seed": seed,
        "held_out": scores,
        "held_out_untrained": untrained,
        "probe_images": len(probe_pool),
        "test_images": len(test_pool),
        "loss_curve": curve,
    }
    card["weights_sha256"] = ship(
        objective.shipped(), output, card=card, companions=(_processor(train_pool),)
    )
    return card


def _run(
    name: str,
    objective: Objective,
    budget: Budget,
    pool: ImagePool,
    seed: int,
    device: torch.device,
) -> Run:
    def step_loss(_: int, generator: torch.Generator) -> ObjectiveLoss:
        batch = pool.batch(budget.images_per_step, generator).to(device)
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


@torch.no_grad()
def features(name: str, model: Any, images: Tensor, *, batch: int = 128) -> Tensor:
    """Return `(P, D)` mean patch tokens of `(P, 3, H, W)` uint8 images, nothing masked."""
    means = []
    for start in range(0, len(images), batch):
        pixels = normalise(images[start : start + batch].float() / 255.0)
        arguments: dict[str, Any] = {}
        if name == "mae":
            ratio, model.config.mask_ratio = model.config.mask_ratio, 0.0
            arguments["noise"] = torch.arange(_patches(model)).float().repeat(len(pixels), 1)
        tokens = model(pixels, **arguments).last_hidden_state[:, _PREFIX_TOKENS[name] :]
        if name == "mae":
            model.config.mask_ratio = ratio
        means.append(tokens.mean(dim=1).float())
    return torch.cat(means)


def measure(name: str, model: Any, probe_pool: ImagePool, test_pool: ImagePool) -> dict[str, float]:
    """Return mean average precision over the classes, in percent, of k-NN and linear probe."""
    known = features(name, model, probe_pool.images).numpy()
    asked = features(name, model, test_pool.images).numpy()
    labels, truth = probe_pool.labels.numpy(), test_pool.labels.numpy()
    nearest = nearest_neighbour_scores(known, labels, asked)
    linear = linear_probe_scores(known, labels, asked)
    chance = truth.mean(axis=0)
    return {
        "knn_map_percent": round(mean_average_precision(nearest, truth), 2),
        "linear_probe_map_percent": round(mean_average_precision(linear, truth), 2),
        "prior_map_percent": round(float(chance[chance > 0].mean() * 100), 2),
    }


def mean_average_precision(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the mean of average precision, in percent, over classes that some image shows."""
    from sklearn.metrics import average_precision_score

    present = labels.any(axis=0)
    return 100.0 * float(average_precision_score(labels[:, present], scores[:, present]))


def _patches(model: Any) -> int:
    return int((model.config.image_size // model.config.patch_size) ** 2)


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
