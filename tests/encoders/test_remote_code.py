"""A repository's own model class: used when asked for, held to the contract, and recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig, dynamic_module_utils

from encoder_bench.base.errors import WeightsError
from encoder_bench.encoders.bundled import tiny_processor
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.registry import load_encoder

_CONFIGURATION = """
from transformers import PreTrainedConfig

class MineConfig(PreTrainedConfig):
    model_type = "mine"
    def __init__(self, image_size=64, patch_size=16, hidden_size=8, num_hidden_layers=2, **more):
        self.image_size, self.patch_size = image_size, patch_size
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        super().__init__(**more)
"""
_MODEL = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from .configuration_mine import MineConfig

class MineModel(PreTrainedModel):
    config_class = MineConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        width, patch = config.hidden_size, config.patch_size
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            nn.Linear(width, width) for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    def forward(self, pixel_values, output_hidden_states=False):
        tokens = self.embed(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(tokens), -1, -1), tokens], dim=1)
        states = [tokens]
        for block in self.blocks:
            tokens = tokens + block(tokens)
            states.append(tokens)
        seen = tuple(states) if output_hidden_states else None
        return BaseModelOutput(RETURNED, hidden_states=seen)
"""


@pytest.fixture(autouse=True, scope="module")
def _own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        place = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", place)
        yield


def publish(folder: Path, returned: str = "tokens") -> Path:
    """Write a repository with a model class of its own, as its authors would upload it."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "configuration_mine.py").write_text(_CONFIGURATION)
    (folder / "modeling_mine.py").write_text(_MODEL.replace("RETURNED", returned))
    own = {"AutoConfig": "configuration_mine.MineConfig", "AutoModel": "modeling_mine.MineModel"}
    config = PreTrainedConfig(auto_map=own, architectures=["MineModel"]).to_dict()
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine"}))
    tiny_processor(64).save_pretrained(folder)
    torch.manual_seed(0)
    state = {"embed.weight": torch.randn(8, 3, 16, 16), "embed.bias": torch.randn(8)}
    state["first"] = torch.randn(1, 1, 8)
    for index in (0, 1):
        state |= {
            f"blocks.{index}.weight": torch.randn(8, 8),
            f"blocks.{index}.bias": torch.ones(8),
        }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(folder: Path, *, trust: bool = True, layer: tuple[int, ...] = (-1,)) -> Encoder:
    return load_encoder(f"dir:{folder}", trust_remote_code=trust, layer=layer)


def test_own_code_runs_only_if_asked_for_and_is_recorded(tmp_path: Path) -> None:
    folder = publish(tmp_path / "mine")
    with pytest.raises(WeightsError, match="runs only if you pass --trust-remote-code"):
        load(folder, trust=False)
    encoder = load(folder)
    assert encoder.remote_code
    assert (encoder.weights_revision or "").startswith("sha256:")
    assert (encoder.grid, encoder.width, encoder.spec.prefix_tokens) == ((4, 4), 8, 1)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        own = encoder.backbone(pixels, output_hidden_states=True)
        assert torch.equal(encoder(pixels), own.last_hidden_state[:, 1:])
        before = load(folder, layer=(-2,))(pixels)
        assert torch.equal(before, own.hidden_states[-2][:, 1:])
    weight = encoder.backbone.state_dict()["blocks.1.bias"]
    assert torch.equal(weight, torch.ones(8))  # read, not initialised


@pytest.mark.parametrize(
    ("name", "returned", "words"),  # one name, one code: transformers keeps imported modules
    [
        ("short", "tokens[:, :9]", "9 tokens of width 8 for 64 x 64 pixels; expected at least 16"),
        ("pooled", "tokens.mean(1)", "no last_hidden_state of"),
        ("broken", "tokens.nonsense", "its forward pass fails"),
    ],
)
def test_own_code_is_held_to_the_contract(
    name: str, returned: str, words: str, tmp_path: Path
) -> None:
    folder = publish(tmp_path / name, returned)
    with pytest.raises(WeightsError, match=words):
        load(folder)


def test_own_code_must_fit_its_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = publish(tmp_path / "mine")
    file = folder / "model.safetensors"
    state = load_file(file)
    del state["blocks.1.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"random values.*blocks\.1\.weight"):
        load(folder)
