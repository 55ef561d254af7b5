"""Every projector keeps the contract; each family keeps its paper's shape."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from encoder_bench.base.errors import EncoderBenchError, RecipeError, UnknownNameError
from encoder_bench.base.recipes import ProjectorSettings, load_adapter
from encoder_bench.mllm.projectors import build_projector, projector_names
from encoder_bench.mllm.projectors.projector import grid_of
from encoder_bench.pipeline.plan import make_plan


@pytest.mark.parametrize("name", projector_names())
@pytest.mark.parametrize("budget", [None, 4, 9, 32])
@pytest.mark.parametrize("grid", [(8, 8), (7, 7), (4, 6)])
def test_shape_and_gradients(name: str, budget: int | None, grid: tuple[int, int]) -> None:
    settings = ProjectorSettings(name=name, visual_tokens=budget, heads=2, head_width=8, depth=2)
    projector = build_projector(settings, grid=grid, width=24, llm_width=40)
    patches = grid[0] * grid[1]
    tokens = projector(torch.randn(2, patches, 24))
    assert tokens.shape == (2, projector.visual_tokens, 40)
    if budget is not None:
        assert projector.visual_tokens == budget
    tokens.square().mean().backward()
    silent = [name for name, p in projector.named_parameters() if p.grad is None]
    assert not silent


@pytest.mark.parametrize("name", projector_names())
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    settings = ProjectorSettings(name=name, heads=2, head_width=8)
    projector = build_projector(settings, grid=(4, 4), width=24, llm_width=40).eval()
    features = torch.randn(3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(projector(features)[1:2], projector(features[1:2]))


def test_resampler_has_the_published_size() -> None:
    # GVT at 40532be: depth 6, 16 heads of 96, 32 latents, on a ViT-L's 1024: attention without bias
    # 4 * 1024 * 1536, feed-forward 8 * 1024 * 1024, three normalisations a layer.
    settings = load_adapter("gvt").projector
    assert (settings.depth, settings.heads, settings.visual_tokens) == (6, 16, 32)
    with torch.device("meta"):
        projector = build_projector(settings, grid=(16, 16), width=1024, llm_width=4096)
    layer = 4 * 1024 * 1536 + 8 * 1024 * 1024 + 3 * 2 * 1024
    rest = 32 * 1024 + 2 * 1024 + 1024 * 4096 + 4096
    assert sum(p.numel() for p in projector.parameters()) == 6 * layer + rest


def test_pixel_shuffle_keeps_every_value_of_a_grid_that_divides() -> None:
    projector = build_projector(
        ProjectorSettings(name="pixel-shuffle"), grid=(4, 4), width=2, llm_width=8
    )
    with torch.no_grad():
        projector.linear.weight.copy_(torch.eye(8))
        projector.linear.bias.zero_()
        features = torch.randn(1, 16, 2)
        tokens = projector(features)
    corner = features[0].reshape(4, 4, 2)[:2, :2].permute(2, 0, 1).flatten()
    torch.testing.assert_close(tokens[0, 0], corner)


@pytest.mark.parametrize("whiten", [False, "channels"])
def test_linear_from_zero_shows_every_image_as_the_mean_word_at_first(
    whiten: Literal[False, "channels"],
) -> None:
    settings = ProjectorSettings(name="linear-from-zero", visual_tokens=4, whiten=whiten)
    projector = build_projector(settings, grid=(4, 4), width=24, llm_width=40)
    words = torch.randn(100, 40, dtype=torch.bfloat16)
    projector.start_from(words)
    tokens = projector(torch.randn(3, 16, 24))
    torch.testing.assert_close(tokens, words.float().mean(0).expand(3, 4, 40))


def test_pooling_averages_neighbours() -> None:
    projector = build_projector(
        ProjectorSettings(name="linear", visual_tokens=4), grid=(4, 4), width=2, llm_width=2
    )
    with torch.no_grad():
        projector.linear.weight.copy_(torch.eye(2))
        projector.linear.bias.zero_()
        features = torch.randn(1, 16, 2)
        tokens = projector(features)
    corner = features[0].reshape(4, 4, 2)[:2, 2:].mean((0, 1))
    torch.testing.assert_close(tokens[0, 1], corner)


def test_a_budget_that_makes_no_grid_says_which_do() -> None:
    with pytest.raises(RecipeError, match=r"visual_tokens 17.*16, 18"):
        grid_of(17, (16, 16))


def test_a_grid_is_found_in_the_encoders_shape() -> None:
    assert grid_of(64, (16, 16)) == (8, 8)
    assert grid_of(32, (16, 16)) == (4, 8)
    assert grid_of(8, (8, 16)) == (2, 4)


def test_an_unknown_projector_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'resampler'"):
        build_projector(ProjectorSettings(name="resampel"), grid=(4, 4), width=8, llm_width=8)


def test_listing_names_needs_no_torch() -> None:
    code = (
        "import sys; from encoder_bench.mllm.projectors import projector_names; "
        "projector_names(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pixel_shuffle_mlp_norms_the_joined_tokens() -> None:
    # a scale on all features is taken out again by the norm
    projector = build_projector(
        ProjectorSettings(name="pixel-shuffle-mlp"), grid=(4, 4), width=2, llm_width=8
    )
    features = torch.randn(1, 16, 2)
    torch.testing.assert_close(
        projector(features), projector(50.0 * features), atol=1e-3, rtol=1e-3
    )


MODULE = """
from torch import nn
from encoder_bench.mllm.projectors.projector import Projector

class FirstToken(Projector):
    visual_tokens = 1

    def build(self):
        self.linear = nn.Linear(self.width, self.llm_width)

    def forward(self, features):
        return self.linear(features[:, :1])
"""


def install(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package in `folder` that adds a projector by entry point."""
    (folder / "first_token_package.py").write_text(MODULE)
    info = folder / "first_token-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: first-token\nVersion: 1.0\n")
    entry = f"[encoder_bench.projectors]\n{name} = first_token_package:FirstToken\n"
    (info / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "first_token_package", raising=False)


@pytest.mark.parametrize("whiten", [False, True])
def test_another_package_adds_a_projector(
    whiten: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "first-token", monkeypatch)
    assert "first-token" in projector_names()
    settings = {"projector.whiten": whiten}
    plan = make_plan(encoder="tiny-deit", projector="first-token", settings=settings)
    projector = build_projector(plan.adapter.projector, grid=(4, 4), width=24, llm_width=40)
    assert projector.visual_tokens == 1
    assert projector(torch.randn(2, 16, 24)).shape == (2, 1, 40)


def test_another_package_cannot_take_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "mlp", monkeypatch)
    with pytest.raises(EncoderBenchError, match=r"entry point mlp .*is taken"):
        projector_names()
