"""Each objective trains its own family's model, and only what should learn does."""

from __future__ import annotations

import pytest
import torch

from encoder_bench.base.errors import UnknownNameError
from zoo.architecture import OBJECTIVES, build_objective
from zoo.objective import PretrainingBatch
from zoo.schedule import Budget, make_optimizers
from zoo.views import global_and_local_crops, shift_and_jitter


def batch() -> PretrainingBatch:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(4, 3, 72, 72, generator=generator)
    captions = torch.randint(3, 40, (4, 20), generator=generator)
    captions[:, 14], captions[:, 15:] = 1, 0
    labels = (torch.rand(4, 5, generator=generator) > 0.5).float()
    return PretrainingBatch(images, captions, labels)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_few_steps_lower_the_loss_on_the_same_views(name: str) -> None:
    objective = build_objective(name, classes=5, vocabulary=40, eos=1, seed=0)
    optimizers = make_optimizers(objective, Budget(steps=10, learning_rate=1e-3))
    losses = []
    for _ in range(8):
        if name == "dino":
            objective.centre.zero_()  # hold the targets still
        loss = objective(batch(), torch.Generator().manual_seed(0))
        objective.zero_grad()
        loss.total.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.total.item())
    assert losses[-1] < losses[0]
    assert loss.features.shape[0] == 4
    assert not loss.features.requires_grad


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_family_has_the_same_vit(name: str) -> None:
    shipped = build_objective(name, classes=5, vocabulary=40, eos=1, seed=0).shipped()
    config = shipped.config
    assert (config.hidden_size, config.num_hidden_layers, config.patch_size) == (128, 6, 12)
    parameters = sum(p.numel() for p in shipped.parameters())
    assert 1_000_000 < parameters < 1_600_000


@pytest.mark.parametrize("name", ["dino", "dinov2"])
def test_the_teacher_moves_only_by_its_average(name: str) -> None:
    objective = build_objective(name, classes=5, vocabulary=40, eos=1, seed=0)
    objective(batch(), torch.Generator().manual_seed(0)).total.backward()
    teacher = objective.shipped()
    assert all(p.grad is None for p in teacher.parameters())
    before = next(teacher.parameters()).clone()
    with torch.no_grad():
        next(objective.encoder.parameters()).add_(1.0)
    objective.after_step(0.0)
    torch.testing.assert_close(
        next(teacher.parameters()), before + 1.0 - objective.teacher_momentum
    )


def test_the_seed_fixes_the_weights() -> None:
    first, again, other = (
        build_objective("dino", classes=5, vocabulary=40, eos=1, seed=seed).state_dict()
        for seed in (0, 0, 1)
    )
    name = "students.encoder.embeddings.patch_embeddings.projection.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_an_unknown_objective_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'siglip'"):
        build_objective("siglp", classes=5, vocabulary=40, eos=1, seed=0)


def test_views_keep_shape_and_range() -> None:
    images = batch().images
    moved = shift_and_jitter(images, torch.Generator().manual_seed(0))
    wide, narrow = global_and_local_crops(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert wide.shape == (8, 3, 72, 72)
    assert narrow.shape == (8, 3, 36, 36)
    for view in (moved, wide, narrow):
        assert view.min() >= 0
        assert view.max() <= 1


def test_a_shift_moves_every_colour_alike() -> None:
    image = torch.zeros(1, 3, 72, 72)
    image[:, :, 30:34, 30:34] = 1.0
    moved = shift_and_jitter(image, torch.Generator().manual_seed(5))
    bright = (moved[0] > 0.3).nonzero()[:, 1:].float()
    assert len(bright) == 3 * 16
    assert (bright.mean(dim=0) - 31.5).abs().max() <= 2
