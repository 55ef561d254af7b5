"""Whitening: what a projector gets has one covariance, whatever the encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import ProjectorSettings
from encoder_bench.data.images import load_image
from encoder_bench.mllm.projectors import build_projector, projector_names
from encoder_bench.mllm.projectors.whitening import WhitenedProjector, Whitening
from encoder_bench.training.checkpoint import load_mllm_weights, save_mllm
from tests.training import world


def lopsided(width: int, tokens: int, seed: int, *, spread: float = 3.0) -> Tensor:
    """Features whose standard deviations span `10**spread`, mixed, and far from the origin."""
    draw = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -spread, width)
    mixed = torch.linalg.qr(torch.randn(width, width, generator=draw)).Q
    return (torch.randn(tokens, width, generator=draw) * scales) @ mixed + 5.0


@settings(max_examples=20, deadline=None)
@given(width=st.integers(2, 24), seed=st.integers(0, 1000))
def test_the_sample_has_mean_zero_and_the_unit_covariance(width: int, seed: int) -> None:
    tokens = lopsided(width, 40 * width, seed, spread=1.0)
    whitening = Whitening(width)
    whitening.fit(tokens)
    white = whitening(tokens[None])[0].double()
    torch.testing.assert_close(white.mean(0), torch.zeros(width).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(width).double(), atol=2e-2, rtol=0)


def test_it_is_the_identity_until_it_is_fitted() -> None:
    features = torch.randn(2, 9, 8)
    assert torch.equal(Whitening(8)(features), features)


def test_directions_without_variance_are_not_blown_up() -> None:
    tokens = lopsided(8, 400, 0)
    tokens[:, 3] = 7.0
    whitening = Whitening(8)
    whitening.fit(tokens)
    noisy = tokens + 1e-5 * torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    assert (whitening(noisy) - whitening(tokens)).abs().max() < 0.05


def test_one_image_of_one_value_gives_finite_features() -> None:
    whitening = Whitening(4)
    whitening.fit(torch.full((16, 4), 2.0))
    assert torch.equal(whitening(torch.full((1, 16, 4), 2.0)), torch.zeros(1, 16, 4))


def test_channels_alone_are_scaled_and_stay_correlated() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(4_000, 3) @ torch.tensor([[5.0, 4.0, 0.0], [0.0, 0.1, 0.0], [0, 0, 2.0]])
    whitening = Whitening(3, channels_only=True)
    whitening.fit(tokens + 7)
    scaled = whitening(tokens[None] + 7)[0]
    assert torch.allclose(scaled.std(dim=0), torch.ones(3), atol=0.01)
    assert torch.allclose(torch.corrcoef(scaled.T), torch.corrcoef(tokens.T), atol=1e-4)


def test_autocast_does_not_round_it() -> None:
    tokens = lopsided(16, 800, 2)
    whitening = Whitening(16)
    whitening.fit(tokens)
    expected = whitening(tokens[None])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whitening(tokens[None]), expected)


@pytest.mark.parametrize("name", projector_names())
def test_every_projector_may_have_it_in_front(name: str) -> None:
    chosen = ProjectorSettings(name=name, heads=2, head_width=8, whiten=True)
    projector = build_projector(chosen, grid=(4, 4), width=24, llm_width=40)
    assert isinstance(projector, WhitenedProjector)
    tokens = lopsided(24, 16 * 30, 3).reshape(30, 16, 24)
    projector.whitening.fit(tokens.flatten(0, 1))
    visual = projector(tokens)
    assert visual.shape == (30, projector.visual_tokens, 40)
    torch.testing.assert_close(visual, projector.inner(projector.whitening(tokens)))
    assert not any("whitening" in name for name, _ in projector.named_parameters())


def test_training_fits_it_to_training_images_and_the_weights_carry_it(tmp_path: Path) -> None:
    mllm = world.model(whiten=True)
    world.run(mllm, tmp_path)
    projector = mllm.projector
    assert isinstance(projector, WhitenedProjector)
    paths = sorted((tmp_path / "images").glob("*.png"))
    again = world.model(whiten=True)
    pixels = torch.stack([mllm.encoder.transform(load_image(path)) for path in paths])
    with torch.no_grad():
        known = dict(zip(paths, mllm.features(pixels), strict=True))
    assert isinstance(again.projector, WhitenedProjector)
    again.projector.fit(again.encoder, paths, known, device=world.CPU, reporter=QuietReporter())
    torch.testing.assert_close(again.projector.whitening.matrix, projector.whitening.matrix)
    save_mllm(mllm, tmp_path / "final")
    read = world.model(whiten=True)
    load_mllm_weights(read, tmp_path / "final")
    assert isinstance(read.projector, WhitenedProjector)
    assert torch.equal(read.projector.whitening.matrix, projector.whitening.matrix)


def test_fitting_leaves_a_tuned_encoder_in_its_mode_and_draws_no_dropout(tmp_path: Path) -> None:
    mllm = world.model(joint=True, dropout=0.5, whiten=True).train()
    paths = world.draw(tmp_path)
    matrices = []
    for _ in range(2):
        assert isinstance(mllm.projector, WhitenedProjector)
        mllm.projector.fit(mllm.encoder, paths, {}, device=world.CPU, reporter=QuietReporter())
        matrices.append(mllm.projector.whitening.matrix.clone())
    assert torch.equal(*matrices)
    assert mllm.encoder.training
